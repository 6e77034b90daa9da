// How many threads compute a decode step: what the governor makes of a machine's load, and that its choice does not change a result.
#include "contexts.h"

#include "../src/device/thread_governor.h"

#include <atomic>
#include <thread>

using namespace kvasir_test;

namespace {

// A machine with so many cores, some of them taken by others: threads without a core of their own make every step wait.
struct machine {
    int     cores, taken;
    int64_t now = 0;

    int64_t step(int threads) const { // ns
        const int64_t alone = 8'000'000 / threads;
        return threads + taken <= cores || threads == 1 ? alone : alone + 40'000'000;
    }
    int64_t preempted(int threads) const { return threads + taken <= cores ? 0 : 5; }

    // the number of threads after so long, and the time that a step took on average
    int run(kvasir::thread_governor & governor, int64_t duration, double * mean = nullptr) {
        const int64_t end = now + duration, begin = now;
        int           steps = 0;
        for (; now < end; steps++) {
            const int     threads = governor.threads();
            const int64_t ns      = step(threads);
            now += ns;
            governor.step(now, ns, preempted(threads));
        }
        if (mean) {
            *mean = (double) (now - begin) / steps;
        }
        return governor.threads();
    }
};

constexpr int64_t SECOND = 1'000'000'000;

void test_governor() {
    for (int cores : {2, 4, 16}) {
        kvasir::thread_governor governor(cores);
        machine m{cores, 0};
        double  mean = 0;
        CHECK(m.run(governor, 10 * SECOND, &mean) == cores && mean == (double) m.step(cores), "%d cores to itself: %d threads, %.0f ns", cores, governor.threads(), mean);
        m.taken = cores / 2;
        m.run(governor, 60 * SECOND);
        const int threads = m.run(governor, 60 * SECOND, &mean);
        CHECK(threads <= cores - m.taken && threads >= 1, "half of %d cores taken: %d threads", cores, threads);
        CHECK(mean <= 1.15 * (double) m.step(cores - m.taken), "half of %d cores taken: %.0f ns a step, of %lld", cores, mean, (long long) m.step(cores - m.taken));
        m.taken = 0;
        CHECK(m.run(governor, 30 * SECOND) == cores, "%d cores free again: %d threads", cores, governor.threads());
    }
    // one step that is disturbed costs no more than a trial
    kvasir::thread_governor governor(2);
    governor.step(100, 100, 100);
    machine m{2, 0};
    double  mean = 0;
    CHECK(m.run(governor, 10 * SECOND, &mean) == 2 && mean <= 1.01 * (double) m.step(2), "%d threads, %.0f ns", governor.threads(), mean);
    // a governor of one thread has no choice
    kvasir::thread_governor one(1);
    one.step(1, 1, 1'000);
    CHECK(one.threads() == 1, "%d", one.threads());
}

// The same tokens, alone and beside threads that keep every processor busy: bit for bit the same.
void test_results() {
    synthetic_model shape;
    model_file      model(shape);
    auto            params = context_params();
    params.n_threads = params.n_threads_batch = 64; // more than there are processors: as many as there are
    context alone(model.ours, params, true);
    const auto want = prompt_and_steps(alone, 100, 400);
    kvasir_timings timings;
    CHECK(kvasir_cache_timings(alone.cache, &timings, 0) == KVASIR_OK && timings.threads >= 1 && timings.threads <= (int64_t) std::thread::hardware_concurrency(),
          "%lld threads of %u", (long long) timings.threads, std::thread::hardware_concurrency());

    std::atomic<bool>        done{false};
    std::vector<std::thread> others;
    for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); i++) {
        others.emplace_back([&] {
            for (volatile unsigned long x = 0; !done; x = x + 1) {
            }
        });
    }
    context beside(model.ours, params, true);
    const auto found = prompt_and_steps(beside, 100, 400);
    done = true;
    for (std::thread & t : others) {
        t.join();
    }
    CHECK(kvasir_cache_timings(beside.cache, &timings, 0) == KVASIR_OK, "%s", kvasir_last_error());
    printf("  %lld of %u processors beside a load\n", (long long) timings.threads, std::thread::hardware_concurrency());
    CHECK(found.size() == want.size() && memcmp(found.data(), want.data(), want.size() * sizeof(float)) == 0, "other logits beside a load");
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: threads_test LIBRARIES FOLDER_FOR_MODELS\n");
        return 2;
    }
    folder = argv[2];
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    if (kvasir_init() != KVASIR_OK || kvasir_device("CPU", &proxy) != KVASIR_OK) {
        fprintf(stderr, "threads_test: %s\n", kvasir_last_error());
        return 1;
    }
    test_governor();
    test_results();
    return check::finish("threads");
}
