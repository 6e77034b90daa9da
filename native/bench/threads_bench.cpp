// What a decode step and a prompt cost with 1, 2, ... threads and with one more than there are processors, on a machine that has nothing else to
// do and beside processes that keep processors busy. All contexts live in one process and take turns.
//
//   threads_bench LIBRARIES MODEL [--busy 2] [--tokens 48] [--prompt 256] [--repeats 7] [--plain]
//
// --plain: unmodified llama.cpp's cache, whose number of threads is fixed
#include "kvasir.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

[[noreturn]] void fail(const char * what) { throw std::runtime_error(std::string(what) + ": " + kvasir_last_error()); }

double milliseconds() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct engine {
    llama_context * context = nullptr;
    kvasir_cache *  cache   = nullptr;
    int32_t         position = 0;
    std::vector<double> step_ms, prompt_ms;

    engine(llama_model * model, int threads, int32_t cells, bool plain) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx           = (uint32_t) cells;
        params.n_batch         = 512;
        params.n_threads       = threads;
        params.n_threads_batch = threads;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        if (kvasir_context_new(model, &params, KVASIR_ATTENTION_NATIVE, &context, plain ? nullptr : &cache) != KVASIR_OK) {
            fail("kvasir_context_new");
        }
    }
    ~engine() { kvasir_context_free(context, cache); }
    engine(const engine &) = delete;
    engine & operator=(const engine &) = delete;

    void decode(int32_t n) {
        std::vector<llama_token> tokens((size_t) n);
        for (int32_t i = 0; i < n; i++) {
            tokens[(size_t) i] = 17 + (position + i) * 31 % 2000;
        }
        llama_batch batch = llama_batch_get_one(tokens.data(), n);
        int32_t result = 0;
        if (kvasir_decode(context, &batch, &result) != KVASIR_OK || result != 0) {
            fail("kvasir_decode");
        }
        position += n;
    }

    void clear() {
        llama_memory_clear(llama_get_memory(context), false);
        if (cache && kvasir_cache_truncate(cache, 0, 0) != KVASIR_OK) {
            fail("kvasir_cache_truncate");
        }
        position = 0;
    }

    void measure(int32_t prompt, int32_t tokens) {
        clear();
        double begin = milliseconds();
        for (int32_t at = 0; at < prompt; at += 512) {
            decode(std::min(512, prompt - at));
        }
        prompt_ms.push_back(milliseconds() - begin);
        begin = milliseconds();
        for (int32_t i = 0; i < tokens; i++) {
            decode(1);
        }
        step_ms.push_back((milliseconds() - begin) / tokens);
    }
};

// processes that compute until they are ended
struct load {
    std::vector<pid_t> processes;
    explicit load(int n) {
        for (int i = 0; i < n; i++) {
            const pid_t process = fork();
            if (process == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (volatile unsigned long x = 0;; x = x + 1) {
                }
            }
            processes.push_back(process);
        }
    }
    ~load() {
        for (pid_t process : processes) {
            kill(process, SIGKILL);
            waitpid(process, nullptr, 0);
        }
    }
};

double quantile(std::vector<double> values, double at) {
    std::sort(values.begin(), values.end());
    return values[(size_t) ((double) (values.size() - 1) * at + 0.5)];
}

void row(const char * machine, int threads, const std::vector<double> & values, const std::vector<double> & of_one, const char * what) {
    printf("| %s | %d | %s | %.2f | %.2f to %.2f | %.2f |\n", machine, threads, what, quantile(values, 0.5), quantile(values, 0), quantile(values, 1),
           quantile(values, 0.5) / quantile(of_one, 0.5));
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: threads_bench LIBRARIES MODEL [--busy N] [--tokens N] [--prompt N] [--repeats N] [--plain]\n");
        return 2;
    }
    int  busy = 2, tokens = 48, prompt = 256, repeats = 7;
    bool plain = false;
    for (int i = 3; i < argc; i++) {
        const std::string name = argv[i];
        if (name == "--plain") {
            plain = true;
            continue;
        }
        int * target = name == "--busy" ? &busy : name == "--tokens" ? &tokens : name == "--prompt" ? &prompt : name == "--repeats" ? &repeats : nullptr;
        if (!target || ++i == argc || (*target = atoi(argv[i])) < 1) {
            fprintf(stderr, "threads_bench: %s is no option, or its value is none\n", name.c_str());
            return 2;
        }
    }
    try {
        setvbuf(stdout, nullptr, _IOLBF, 0);
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        ggml_backend_load_all_from_path(argv[1]);
        if (kvasir_init() != KVASIR_OK) {
            fail("kvasir_init");
        }
        ggml_backend_dev_t devices[2] = {};
        if (kvasir_device("CPU", &devices[0]) != KVASIR_OK) {
            fail("kvasir_device");
        }
        llama_model_params params = llama_model_default_params();
        params.devices      = devices;
        params.n_gpu_layers = plain ? 0 : 999;
        llama_model * model = nullptr;
        if (kvasir_model_load(argv[2], &params, &model) != KVASIR_OK) {
            fail("kvasir_model_load");
        }
        const int processors = (int) std::max(1U, std::thread::hardware_concurrency());
        std::vector<int> threads = {1};
        for (int n = 2; n < processors; n *= 2) {
            threads.push_back(n);
        }
        threads.push_back(processors);
        threads.push_back(processors + 1);
        threads.erase(std::unique(threads.begin(), threads.end()), threads.end());
        std::map<int, std::unique_ptr<engine>> engines;
        for (int n : threads) {
            engines[n] = std::make_unique<engine>(model, n, prompt + tokens + 64, plain);
        }
        printf("| machine | threads | | ms, median | range | of 1 thread |\n|---|---|---|---|---|---|\n");
        for (bool loaded : {false, true}) {
            const load others(loaded ? busy : 0);
            for (auto & [n, e] : engines) {
                e->measure(prompt, tokens);
                e->step_ms.clear();
                e->prompt_ms.clear();
            }
            for (int i = 0; i < repeats; i++) {
                for (auto & [n, e] : engines) {
                    e->measure(prompt, tokens);
                }
            }
            const std::string machine = loaded ? std::to_string(busy) + " busy processes" : "quiet";
            for (auto & [n, e] : engines) {
                row(machine.c_str(), n, e->step_ms, engines[1]->step_ms, "a decode step");
            }
            for (auto & [n, e] : engines) {
                row(machine.c_str(), n, e->prompt_ms, engines[1]->prompt_ms, "the prompt");
            }
        }
        engines.clear();
        llama_model_free(model);
        return 0;
    } catch (const std::exception & e) {
        fprintf(stderr, "threads_bench: %s\n", e.what());
        return 1;
    }
}
