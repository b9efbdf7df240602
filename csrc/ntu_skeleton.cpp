#include "ntu_skeleton.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

namespace shapmix {
namespace {

// Per body: a line of 10 fields, the number of joints, and a line of 12 fields per joint.
constexpr int kBodyFields = 10;
constexpr int kJointFields = 12;
constexpr std::int64_t kLeastBodyBytes = 2 * kBodyFields + 3 + 2 * kJointFields * kNtuJoints;

constexpr std::int64_t kMostBodies = 256;                    // per frame; a sensor tracks six people
constexpr char kByteOrderMark[] = {'\xEF', '\xBB', '\xBF'};  // UTF-8, written by some editors

constexpr double kTens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                            1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr std::uint64_t kExactInDouble = std::uint64_t{1} << 53;

bool is_space(char c) { return c == ' ' || c == '\t'; }
bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }

class Lines {
 public:
  Lines(const char* text, std::size_t size) : at_(text), end_(text + size) {}

  std::int64_t left() const { return end_ - at_; }
  std::int64_t line() const { return line_; }

  // Advances to the next line; `what` is its expected content.
  void next(const char* what) {
    if (at_ == end_) throw NtuSkeletonError(line_, std::string("the file ends behind this line, where ") + what + " should follow");
    ++line_;
    field_ = at_;
    const void* found = std::memchr(at_, '\n', static_cast<std::size_t>(end_ - at_));
    const char* stop = found ? static_cast<const char*>(found) : end_;
    at_ = found ? stop + 1 : end_;
    if (stop != field_ && stop[-1] == '\r') --stop;
    stop_ = stop;
  }

  // Parses the next field of the line, `what`, as an integer.
  template <class Integer>
  Integer integer(const char* what) {
    skip_spaces();
    Integer value{};
    const auto [stop, error] = std::from_chars(field_, stop_, value);
    if (error != std::errc() || (stop != stop_ && !is_space(*stop))) fail_at(what, "a whole number");
    field_ = stop;
    return value;
  }

  // Parses the next field of the line, `what`, as a number.
  double number(const char* what) {
    skip_spaces();
    const char* p = field_;
    const bool negative = p != stop_ && *p == '-';
    p += negative;
    // Up to 19 digits and a small power of ten: correctly rounded by one division or product (Clinger 1990).
    std::uint64_t digits = 0;
    const char* const first = p;
    while (p != stop_ && is_digit(*p)) digits = 10 * digits + static_cast<std::uint64_t>(*p++ - '0');
    std::int64_t count = p - first;
    std::int64_t power = 0;
    if (p != stop_ && *p == '.') {
      const char* const behind_point = ++p;
      while (p != stop_ && is_digit(*p)) digits = 10 * digits + static_cast<std::uint64_t>(*p++ - '0');
      power = behind_point - p;
      count -= power;
    }
    const bool simple = count > 0 && count <= 19 && digits <= kExactInDouble && power >= -22 && (p == stop_ || is_space(*p));
    if (simple) {
      field_ = p;
      const double value = static_cast<double>(digits) / kTens[-power];
      return negative ? -value : value;
    }
    double value = 0;
    const auto [stop, error] = std::from_chars(field_, stop_, value);
    if (error == std::errc::result_out_of_range && stop != field_) {
      value = 0;  // underflow is 0; overflow fails below
      for (const char* digit = field_; digit != stop; ++digit) {
        if ((*digit == 'e' || *digit == 'E') && digit + 1 != stop && digit[1] != '-') value = HUGE_VAL;
      }
    } else if (error != std::errc()) {
      fail_at(what, "a number");
    }
    if (stop != stop_ && !is_space(*stop)) fail_at(what, "a number");
    if (!(std::fabs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) fail_at(what, "a finite number");
    field_ = stop;
    return value;
  }

  // Checks that the line has `expected` fields, of which `taken` were read.
  void rest(int taken, int expected, const char* what) {
    int found = taken;  // a field begins after each space not followed by a space; branch-free, to vectorise
    for (const char* p = field_; p < stop_; ++p) found += int{is_space(p[-1])} & int{!is_space(*p)};
    if (found != expected) {
      throw NtuSkeletonError(line_, std::to_string(found) + " fields, " + what + " has " + std::to_string(expected));
    }
  }

  void only(const char* what) {
    skip_spaces();
    if (field_ != stop_) fail_behind(what, "");
  }

  void check_end(std::int64_t frames) {
    while (at_ != end_) {
      next("nothing");
      skip_spaces();
      if (field_ != stop_) fail_behind("the last frame", "; line 1 gives " + std::to_string(frames) + " frames");
    }
  }

  [[noreturn]] void fail(const std::string& reason) const { throw NtuSkeletonError(line_, reason); }

 private:
  void skip_spaces() {
    while (field_ != stop_ && is_space(*field_)) ++field_;
  }

  [[noreturn]] void fail_at(const char* what, const char* kind) const {
    throw NtuSkeletonError(line_, std::string(what) + " is " + shown() + ", not " + kind);
  }

  [[noreturn]] void fail_behind(const char* what, const std::string& why) const {
    throw NtuSkeletonError(line_, std::string("text behind ") + what + ", " + shown() + why);
  }

  // The next field in quotes, cut to 24 printable characters.
  std::string shown() const {
    std::string text = "'";
    for (const char* p = field_; p != stop_ && !is_space(*p) && p - field_ < 24; ++p) text += *p >= ' ' && *p <= '~' ? *p : '?';
    return text + "'";
  }

  const char* at_;   // the next line
  const char* end_;  // of the text
  const char* field_ = nullptr;
  const char* stop_ = nullptr;  // of the line
  std::int64_t line_ = 0;
};

// A count larger than the file can hold is rejected before memory is allocated for it.
void check_count(const Lines& lines, std::int64_t count, std::int64_t least_bytes, const char* what) {
  if (count < 0) lines.fail(std::to_string(count) + what + "; give 0 or more");
  if (count > lines.left() / least_bytes) {
    lines.fail(std::to_string(count) + what + ", more than the remaining " + std::to_string(lines.left()) + " bytes can hold");
  }
}

void read_body(Lines& lines, NtuSkeleton& found, std::int64_t frame, std::size_t first_of_frame) {
  lines.next("a body");
  const auto body = lines.integer<std::uint64_t>("the id of the body");
  lines.rest(1, kBodyFields, "a body");
  for (std::size_t other = first_of_frame; other < found.body.size(); ++other) {
    if (found.body[other] == body) lines.fail("body " + std::to_string(body) + " comes twice in one frame");
  }
  lines.next("the number of joints");
  const auto joints = lines.integer<std::int64_t>("the number of joints");
  lines.only("the number of joints");
  if (joints != kNtuJoints) lines.fail(std::to_string(joints) + " joints, a body has " + std::to_string(kNtuJoints));
  found.body.push_back(body);
  found.frame_of.push_back(frame);
  for (int joint = 0; joint < kNtuJoints; ++joint) {
    lines.next("a joint");
    for (const char* axis : {"x", "y", "z"}) found.joints.push_back(static_cast<float>(lines.number(axis)));
    lines.rest(3, kJointFields, "a joint");
  }
}

}  // namespace

NtuSkeleton parse_ntu_skeleton(const char* text, std::size_t size) {
  if (size >= sizeof(kByteOrderMark) && std::memcmp(text, kByteOrderMark, sizeof(kByteOrderMark)) == 0) {
    text += sizeof(kByteOrderMark);
    size -= sizeof(kByteOrderMark);
  }
  Lines lines(text, size);
  NtuSkeleton found;
  lines.next("the number of frames");
  found.frames = lines.integer<std::int64_t>("the number of frames");
  lines.only("the number of frames");
  check_count(lines, found.frames, 1, " frames");
  std::int64_t with_bodies = 0;
  for (std::int64_t frame = 0; frame < found.frames; ++frame) {
    lines.next("the number of bodies");
    const auto bodies = lines.integer<std::int64_t>("the number of bodies");
    lines.only("the number of bodies");
    check_count(lines, bodies, kLeastBodyBytes, " bodies");
    // Ids are compared pairwise, which is quadratic in the bodies of a frame.
    if (bodies > kMostBodies) {
      lines.fail(std::to_string(bodies) + " bodies in a frame; a recording has at most " + std::to_string(kMostBodies));
    }
    const std::size_t first = found.body.size();
    for (std::int64_t body = 0; body < bodies; ++body) read_body(lines, found, with_bodies, first);
    with_bodies += bodies > 0;
  }
  lines.check_end(found.frames);
  return found;
}

}  // namespace shapmix
