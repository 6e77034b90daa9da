#include "thread_governor.h"

#include <algorithm>

namespace kvasir {

static constexpr int     WINDOW_STEPS = 8; // at a level, before its cost is believed
static constexpr int     TRIAL_STEPS  = 4;
static constexpr int     CROWDED      = 4; // preemptions in a window, and no fewer than one a step, that call for a trial at once
static constexpr int64_t FIRST_WAIT   = 250'000'000, LONGEST_WAIT = 4'000'000'000; // ns
static constexpr int64_t TRIAL_SHARE  = 16; // trials take at most this part of the time

void thread_governor::restart() {
    trial_ = 0;
    sum_ = preempted_ = 0;
    steps_            = 0;
}

void thread_governor::step(int64_t now_ns, int64_t ns, int64_t preempted) {
    if (most_ == 1) {
        return;
    }
    sum_ += ns;
    preempted_ += preempted;
    steps_++;
    if (trial_) {
        // given up as soon as it has taken longer than all of its steps would have taken without it
        if (steps_ == TRIAL_STEPS || sum_ > cost_ * TRIAL_STEPS) {
            end_trial(now_ns);
        }
    } else if (steps_ == WINDOW_STEPS || (crowded() && level_ == most_)) {
        cost_ = sum_ / steps_;
        decide(now_ns);
        sum_ = preempted_ = 0;
        steps_            = 0;
    }
}

bool thread_governor::crowded() const { return preempted_ >= std::max(CROWDED, steps_); }

void thread_governor::decide(int64_t now_ns) {
    if (now_ns < not_before_) {
        return;
    }
    if (crowded() && level_ > 1) {
        trial_ = level_ / 2; // one thread too many is as slow as several
    } else if (level_ < most_ && 4 * preempted_ <= steps_) { // the cores seem to be free again
        trial_ = std::min(most_, level_ + std::max(1, level_ / 4));
    }
}

void thread_governor::end_trial(int64_t now_ns) {
    const int64_t cost = sum_ / steps_;
    if (steps_ == TRIAL_STEPS && cost * 20 < cost_ * 19) {
        level_ = trial_;
        cost_  = cost;
        wait_  = FIRST_WAIT;
    } else {
        wait_ = std::clamp(2 * wait_, FIRST_WAIT, LONGEST_WAIT);
    }
    not_before_ = now_ns + std::max(wait_, TRIAL_SHARE * sum_);
    restart();
}

} // namespace kvasir
