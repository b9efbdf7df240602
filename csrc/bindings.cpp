// shapmix._native: the CPU ops.
#include <string>

#include "draw.h"
#include "isa.h"
#include "job.h"
#include "loss.h"
#include "saliency.h"
#include "sample.h"

using namespace shapmix;

namespace {

const std::vector<Dtype> kWide = {Dtype::kFloat32, Dtype::kFloat64};

// The type of reals is that of sums.
AugmentPlan augment_plan(Fields& fields, Dtype reals) {
  AugmentPlan plan{};
  plan.reversed = fields.optional_tensor("reversed", 1).of<bool>();
  plan.pace = fields.optional_tensor("pace", 2).of(reals);
  plan.source = fields.optional_tensor("source", 2).of<std::int64_t>();
  plan.linear = fields.optional_tensor("linear", 3).of(reals);
  plan.jitter = fields.optional_tensor("jitter", 1).of(reals);
  plan.jitter_key = fields.optional_tensor("jitter_key", 1).of<std::int64_t>();
  plan.kept = fields.optional_tensor("kept", 2).of<bool>();
  return plan;
}

// The fields that a check of the values reads; the angles have the type of sums.
SampleJob crops_of(Fields& fields, const Array& frames) {
  SampleJob job{};
  job.recorded_frames = frames.size(0);
  job.people = frames.size(1);
  job.joints = frames.size(2);
  job.channels = frames.size(3);
  const Array offsets = fields.tensor("offsets", 1), clip = fields.tensor("clip", 1);
  job.offsets = offsets.of<std::int64_t>();
  job.recordings = offsets.size(0) - 1;
  job.plan.clip = clip.of<std::int64_t>();
  job.samples = clip.size(0);
  job.plan.start = fields.tensor("start", 1).of<std::int64_t>();
  job.plan.length = fields.tensor("length", 1).of<std::int64_t>();
  job.dtype = sum_dtype(frames.dtype());
  job.plan.angles = fields.tensor("angles", 2).of(job.dtype);
  job.augment = augment_plan(fields, job.dtype);
  job.parents = fields.tensor("parents", 1).of<std::int64_t>();
  return job;
}

SampleJob sample_job(Fields& fields) {
  const Array frames = fields.tensor("frames", 4);
  SampleJob job = crops_of(fields, frames);
  job.frames = frames.of(job.dtype);
  job.num_frames = fields.number<std::int64_t>("num_frames");
  const auto stream = fields.number<std::string>("stream");
  job.bone = stream == "bone" || stream == "bone_motion";
  job.motion = stream == "motion" || stream == "bone_motion";
  job.out = fields.tensor("out", 5).of(job.dtype);
  return job;
}

// The fields that a check of the values reads.
DrawJob drawn_from(Fields& fields) {
  DrawJob job{};
  const Array labels = fields.tensor("labels", 1), saliency = fields.tensor("saliency", 2);
  job.labels = labels.of<std::int64_t>();
  job.samples = labels.size(0);
  job.dtype = saliency.dtype();
  job.saliency = saliency.of(job.dtype);
  job.classes = saliency.size(0);
  job.columns = saliency.size(1);
  job.combinations = fields.tensor("combinations", 1).of<std::int64_t>();
  const Array part_of_joint = fields.tensor("part_of_joint", 1);
  job.part_of_joint = part_of_joint.of<std::int64_t>();
  job.joints = part_of_joint.size(0);
  return job;
}

DrawJob draw_job(Fields& fields) {
  DrawJob job = drawn_from(fields);
  job.priority = fields.tensor("priority", 1).of<std::int64_t>();
  job.num_frames = fields.number<std::int64_t>("num_frames");
  job.shortest = fields.number<std::int64_t>("shortest");
  job.longest = fields.number<std::int64_t>("longest");
  job.seed = fields.number<std::uint64_t>("seed");
  const Array step = fields.optional_tensor("step_on_device", 0);
  job.step = fields.low_word("step");
  if (step.given()) job.step = static_cast<std::uint32_t>(*step.of<std::int64_t>());
  job.guided = fields.number<bool>("guided");
  job.temperature = fields.number<double>("temperature");
  job.blend_probability = fields.number<double>("blend_probability");
  job.fields = fields.tensor("fields", 2).of<std::int64_t>();
  job.lam = fields.tensor("lam", 1).of<double>();
  job.blend = fields.tensor("blend", 1).of<bool>();
  return job;
}

// The fields that a check of the values reads.
SaliencyJob updates_of(Fields& fields, const Array& table, const Array& logits) {
  SaliencyJob job{};
  job.classes = table.size(0);
  job.combinations = table.size(1);
  job.rows = logits.size(0);
  const Array labels = fields.tensor("labels", 1), with_rows = fields.tensor("with_rows", 1, 2);
  job.labels = labels.of<std::int64_t>();
  job.columns = fields.tensor("columns", 1).of<std::int64_t>();
  job.updates = labels.size(0);
  job.with_rows = with_rows.of<std::int64_t>();
  job.without_rows = fields.tensor("without_rows", 1, 2).of<std::int64_t>();
  job.contexts = with_rows.axes() == 2 ? with_rows.size(1) : 1;
  job.joint_counts = fields.tensor("joint_counts", 1).of<std::int64_t>();
  return job;
}

SaliencyJob saliency_job(Fields& fields) {
  const Array table = fields.tensor("table", 2), logits = fields.tensor("logits", 2);
  SaliencyJob job = updates_of(fields, table, logits);
  job.table_dtype = table.dtype();
  job.table = table.of(job.table_dtype);
  job.logits_dtype = logits.dtype();
  job.logits = logits.of(job.logits_dtype);
  job.weights = fields.optional_tensor("weights", 2).of(job.table_dtype);
  job.decay = fields.number<double>("decay");
  job.scale = fields.number<double>("scale");
  job.marginal = fields.tensor("marginal", 1).of(job.table_dtype);
  return job;
}

MixTargets mix_targets(Fields& fields, const Array& logits) {
  const Array labels = fields.tensor("labels", 1);
  return {labels.of<std::int64_t>(), fields.tensor("partner", 1).of<std::int64_t>(), labels.size(0), logits.size(1)};
}

LossJob loss_job(Fields& fields) {
  const Array logits = fields.tensor("logits", 2);
  LossJob job{};
  job.dtype = logits.dtype();
  job.logits = logits.of(job.dtype);
  job.rows = logits.size(0);
  job.targets = mix_targets(fields, logits);
  job.lam = fields.tensor("lam", 1).of(sum_dtype(job.dtype));
  job.log_prior = fields.tensor("log_prior", 1).of(sum_dtype(job.dtype));
  job.row_sums = fields.tensor("row_sums", 1).of(sum_dtype(job.dtype));
  return job;
}

void bind_ops(py::module_& module) {
  declare(module, "coalition_inputs", kEveryDtype, [](Fields& fields) {
    return [job = coalition_job(fields), threads = torch_threads()] {
      check_coalitions(job);
      coalition_inputs_cpu(job, threads);
    };
  });
  declare(module, "mix_clips", kEveryDtype, [](Fields& fields) {
    return [job = mix_job(fields), threads = torch_threads()] {
      check_plan(job.shape, job.plan, job.part_of_joint);
      mix_clips_cpu(job, threads);
    };
  });
  declare(module, "sample_clips", kWide, [](Fields& fields) {
    return [job = sample_job(fields), threads = torch_threads()] {
      check_crops(job);
      sample_clips_cpu(job, threads);
    };
  });
  declare(module, "draw_plan", kWide, [](Fields& fields) {
    return [job = draw_job(fields)] {
      check_draw(job);
      draw_plan_cpu(job);
    };
  });
  declare(module, "saliency_update", kEveryDtype, [](Fields& fields) {
    return [job = saliency_job(fields), threads = torch_threads()] {
      check_updates(job);
      saliency_update_cpu(job, threads);
    };
  });
  declare(module, "balanced_mix_loss", kEveryDtype, [](Fields& fields) {
    const LossJob job = loss_job(fields);
    return [job, losses = fields.tensor("losses", 1).of(sum_dtype(job.dtype)), threads = torch_threads()] {
      check_targets(job.targets);
      balanced_mix_loss_cpu(job, losses, threads);
    };
  });
  declare(module, "balanced_mix_loss_backward", kEveryDtype, [](Fields& fields) {
    const LossJob job = loss_job(fields);
    return [job, grad = fields.tensor("grad", 1).of(sum_dtype(job.dtype)), to_logits = fields.tensor("to_logits", 2).of(job.dtype),
            threads = torch_threads()] {
      check_targets(job.targets);
      balanced_mix_loss_backward_cpu(job, grad, to_logits, threads);
    };
  });
}

// Adds a check of an op's values on CPU tensors, for the other back ends: it raises ValueError for the first one out of range, and
// reads some of the op's fields.
template <class Check>
void bind_check(py::module_& module, const char* name, const Check& check) {
  module.def(name, [name, check](const py::kwargs& given) {
    Fields fields(name, given);
    check(fields);
  });
}

void bind_checks(py::module_& module) {
  bind_check(module, "check_coalitions",
             [](Fields& fields) { check_coalitions(coalitions_of(fields, fields.tensor("clips", 5))); });
  bind_check(module, "check_plan", [](Fields& fields) {
    const ClipShape shape = clip_shape(fields.tensor("clips", 5));
    const MixPlan plan = mix_plan(fields);
    check_plan(shape, plan, fields.tensor("part_of_joint", 1).of<std::int64_t>());
  });
  bind_check(module, "check_crops", [](Fields& fields) { check_crops(crops_of(fields, fields.tensor("frames", 4))); });
  bind_check(module, "check_draw", [](Fields& fields) { check_draw(drawn_from(fields)); });
  bind_check(module, "check_updates", [](Fields& fields) {
    const Array table = fields.tensor("table", 2), logits = fields.tensor("logits", 2);
    check_updates(updates_of(fields, table, logits));
  });
  bind_check(module, "check_targets", [](Fields& fields) { check_targets(mix_targets(fields, fields.tensor("logits", 2))); });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU ops of shapmix, called by shapmix.kernels with tensors by name; KERNELS has the dtypes of each op.";
  bind_ops(module);
  bind_checks(module);
  Binding::run_all(module);

  module.def("cpu_info", [] {
    py::dict info;
    const IsaChoice choice = isa_choice();
    info["isa"] = name_of(choice.set);
    info["isa_pinned"] = choice.pinned;
    py::list sets;
    for (const Isa set : processor_sets()) sets.append(name_of(set));
    info["processor_sets"] = py::tuple(sets);
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["compiler"] = SHAPMIX_COMPILER;
    return info;
  });
}
