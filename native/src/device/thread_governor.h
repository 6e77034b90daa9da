// How many threads compute a decode step. ggml's threads meet at a barrier after every operation and spin there, a few hundred
// times a token: where another process wants the core of one of them, all the others burn theirs until it is back, and fewer
// threads are faster. That cannot be foreseen, only tried: when the process was preempted while it computed, some steps run with
// fewer threads, and the faster number stays; once it is no longer preempted, more are tried again. A machine that has its cores
// to itself sees no preemption, and no trial.
#pragma once

#include <cstdint>

namespace kvasir {

class thread_governor {
public:
    explicit thread_governor(int most) : most_(most), level_(most) {}

    // of the next step
    int  threads() const { return trial_ ? trial_ : level_; }
    // A step has ended at now_ns and took ns; preempted: how often threads of the process had to leave a core meanwhile although they could go on.
    void step(int64_t now_ns, int64_t ns, int64_t preempted);
    // what comes next is not comparable with the steps so far
    void restart();

private:
    bool crowded() const;
    void decide(int64_t now_ns);
    void end_trial(int64_t now_ns);

    int     most_, level_;
    int     trial_     = 0;    // threads that are tried, or 0
    int64_t cost_      = 0;    // ns of a step with level_ threads, the mean of the last window
    int64_t sum_ = 0, preempted_ = 0;
    int     steps_     = 0;
    int64_t not_before_ = 0;   // no trial before that time
    int64_t wait_       = 0;   // between two trials; grows while they fail
};

} // namespace kvasir
