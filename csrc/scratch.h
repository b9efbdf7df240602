// Scratch memory of the threads of one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace shapmix {

inline constexpr std::size_t kCacheLine = 64;

// One uninitialised array per worker. Each is aligned to a cache line: vectors do not straddle lines, and workers share none.
template <class T>
class Scratch {
 public:
  Scratch(int workers, std::int64_t count)
      : bytes_((static_cast<std::size_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine),
        memory_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(workers) * bytes_, kAlignment))) {}

  T* of(std::int64_t worker) const { return reinterpret_cast<T*>(memory_.get() + static_cast<std::size_t>(worker) * bytes_); }

 private:
  static constexpr std::align_val_t kAlignment{kCacheLine};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };

  std::size_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace shapmix
