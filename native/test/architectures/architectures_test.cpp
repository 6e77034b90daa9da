// Runs a model file of every architecture three ways: unmodified llama.cpp, over the store with everything kept, and over
// the store with half of every head evicted. What must come out: with everything kept the logits of llama.cpp, with half
// evicted those of llama.cpp whose attention is computed in double precision over the same tokens (reference.h). A model
// that the store has no path for is refused by name. Each file is run in a process of its own, so that one that crashes or
// hangs is one row of the table.
//
//   architectures_test LIBRARIES FOLDER FIXTURES [--table FILE] [NAME...]
//
// LIBRARIES: folder of llama.cpp's libraries. FOLDER: for the models, which are removed again. FIXTURES: the program that
// writes llama.cpp's own fixtures, see fixtures.cpp. Without a NAME all of them, and the hybrids of synthetic_model.h.
#include "../contexts.h"
#include "reference.h"

#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <sys/wait.h>
#include <unistd.h>

using namespace kvasir_test;

namespace {

// Less than the context that the fixtures name, more than their sliding window of 32.
constexpr int32_t N_PROMPT = 128, N_STEPS = 32;

// llama.cpp's flash attention adds up a single query's values in f16. Where a model applies its layers again and again, its own
// two ways to compute attention are further apart than this; then twice that is the bound.
constexpr double NMSE_PREFILL = 1e-8, NMSE_DECODE = 2e-5, OF_TWO_PATHS = 2;

// That evicting half of the tokens changes what comes out.
constexpr double LEAST_EFFECT = 1e-6;

constexpr unsigned SECONDS = 120; // for one model

// Those whose fixtures end llama.cpp's test; ours are in synthetic_model.cpp.
constexpr const char * HYBRIDS[] = {"qwen3next", "qwen35", "granitehybrid", "nemotron_h", "falcon-h1"};

// ---- one model, in a process of its own ----

double nmse(const std::vector<float> & expected, const std::vector<float> & got, size_t from, size_t to) {
    double difference = 0, square = 0;
    for (size_t i = from; i < to; i++) {
        const double d = (double) expected[i] - (double) got[i];
        difference += d * d;
        square += (double) expected[i] * (double) expected[i];
    }
    return difference / square;
}

// half of the tokens, others in every head; the first ones stay, so that no query is left without a key
bool kept(int32_t il, int32_t head, int32_t pos) {
    if (pos < 4 || pos >= N_PROMPT) {
        return true;
    }
    uint32_t x = (uint32_t) (pos * 7919 + il * 104729 + head * 1299709 + 12345);
    x = (x ^ (x >> 15)) * 0x2c1b3c6dU;
    x = (x ^ (x >> 12)) * 0x297a2d39U;
    return ((x ^ (x >> 15)) & 1) != 0;
}

void evict_half(kvasir_cache * cache) {
    for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
        kvasir_layer_info info;
        kvasir_cache_layer(cache, l, &info);
        for (int32_t h = 0; h < info.n_head_kv; h++) {
            kvasir_head_view view;
            kvasir_cache_head(cache, l, 0, h, &view);
            std::vector<int32_t> slots;
            for (int32_t s = 0; s < *view.n_slots; s++) {
                if (kept(info.layer, h, view.cell[s])) {
                    slots.push_back(s);
                }
            }
            CHECK(kvasir_cache_keep(cache, l, 0, h, slots.data(), (int32_t) slots.size()) == KVASIR_OK, "%s", kvasir_last_error());
        }
    }
}

llama_context_params params_for(const llama_model * model) {
    llama_context_params p = context_params();
    p.n_ctx    = (uint32_t) std::min(256, llama_model_n_ctx_train(model));
    p.n_batch  = 256;
    p.n_ubatch = 64;
    p.swa_full = true; // a cell is a position
    p.n_threads = p.n_threads_batch = 1; // waits for nobody on a machine with other work
    return p;
}

std::vector<llama_token> tokens_for(size_t n, uint32_t seed, int32_t n_vocab) {
    auto tokens = random_tokens(n, seed);
    for (auto & t : tokens) {
        t %= n_vocab;
    }
    return tokens;
}

// logits of the prompt's tokens and of the steps after it; between the two, something is done
template <typename F> std::vector<float> run(context & c, F && between) {
    std::vector<float> logits = c.decode(tokens_for(N_PROMPT, 7, c.n_vocab), 0);
    between();
    const auto steps = tokens_for(N_STEPS, 8, c.n_vocab);
    for (int32_t i = 0; i < N_STEPS; i++) {
        const auto row = c.decode({steps[(size_t) i]}, N_PROMPT + i);
        logits.insert(logits.end(), row.begin(), row.end());
    }
    return logits;
}

std::string header(const llama_model * model, const char * key) {
    char arch[64] = "", value[64] = "";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof arch);
    const std::string name = std::string(arch) + "." + key;
    return llama_model_meta_val_str(model, name.c_str(), value, sizeof value) < 0 ? "" : value;
}

std::string kind_of(const llama_model * model, const kvasir_cache * cache) {
    std::string kind, heads;
    if (llama_model_is_recurrent(model)) {
        kind = "recurrent";
    } else if (llama_model_is_diffusion(model)) {
        kind = "diffusion";
    } else if (cache) {
        bool sliding = false;
        for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
            kvasir_layer_info info;
            kvasir_cache_layer(cache, l, &info);
            sliding |= info.n_swa != 0;
            if (l == 0) {
                heads = header(model, "attention.kv_lora_rank") != "" && info.head_dim_k != info.head_dim_v && info.n_head_kv == 1 ? "latent"
                      : info.n_head == info.n_head_kv ? "MHA" : info.n_head_kv == 1 ? "MQA" : "GQA";
            }
        }
        kind = heads + (sliding ? ", sliding window" : "");
    }
    if (llama_model_is_hybrid(model)) {
        kind = kind.empty() ? "hybrid" : "hybrid, " + kind;
    }
    const std::string experts = header(model, "expert_count");
    return kind + (experts.empty() || experts == "0" ? "" : kind.empty() ? "experts" : ", experts");
}

llama_model * load(const char * path, ggml_backend_dev_t device) {
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {device, nullptr};
    params.devices      = devices;
    params.n_gpu_layers = device ? 999 : 0;
    llama_model * model = nullptr;
    return kvasir_model_load(path, &params, &model) == KVASIR_OK ? model : nullptr;
}

// what a model that has no path says, or nothing
std::string refusal(llama_model * model, bool adaptive) {
    llama_context_params params = params_for(model);
    llama_context * c     = nullptr;
    kvasir_cache *  cache = nullptr;
    const kvasir_status status = kvasir_context_new(model, &params, KVASIR_ATTENTION_NATIVE, &c, adaptive ? &cache : nullptr);
    if (status == KVASIR_OK) {
        kvasir_context_free(c, cache);
        return "";
    }
    CHECK(status == KVASIR_UNSUPPORTED, "status %d: %s", status, kvasir_last_error());
    return kvasir_last_error();
}

// The row: kind, NMSE of prefill, of decode, of decode with half evicted, what evicting changes, the refusal.
void print_row(const std::string & kind, const std::string & numbers, const std::string & refused) {
    printf("row|%s|%s|%s\n", kind.c_str(), numbers.c_str(), refused.c_str());
    fflush(stdout);
}

int run_model(const char * libraries, const char * path) {
    load_llama(libraries);
    CHECK(kvasir_device("CPU", &proxy) == KVASIR_OK, "%s", kvasir_last_error());
    llama_model * stock = load(path, nullptr), * ours = load(path, proxy);
    CHECK(stock && ours, "%s: %s", path, kvasir_last_error());
    if (!stock || !ours) {
        return check::finish(path);
    }
    const std::string refused = refusal(ours, true);
    if (!refused.empty()) {
        // without the store llama.cpp runs what has a memory of any kind, and there is one sentence for what has none
        const std::string plain = refusal(stock, false);
        if (plain.empty()) {
            context c(stock, params_for(stock), false);
            const auto logits = run(c, [] {});
            CHECK(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }), "logits that are not finite");
        }
        print_row(kind_of(ours, nullptr), "|||", refused + (plain.empty() ? "; runs without the store" : ""));
        return check::finish(path);
    }
    std::vector<float> plain, other_path, full, half, reference;
    std::string        kind;
    {
        context c(stock, params_for(stock), false);
        plain = run(c, [] {});
    }
    {
        llama_context_params params = params_for(stock);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context c(stock, params, false);
        other_path = run(c, [] {});
    }
    {
        context c(ours, params_for(ours), true);
        kind = kind_of(ours, c.cache);
        full = run(c, [] {});
    }
    {
        context c(ours, params_for(ours), true);
        half = run(c, [&] { evict_half(c.cache); });
    }
    reference_attention attention;
    {
        llama_context_params params = params_for(stock);
        params.flash_attn_type   = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.cb_eval           = reference_attention::callback;
        params.cb_eval_user_data = &attention;
        context c(stock, params, false);
        reference = run(c, [&] { attention.keeps = kept; });
    }
    const size_t all = plain.size(), prompt = all / (N_PROMPT + N_STEPS) * N_PROMPT;
    const double prefill = nmse(plain, full, 0, prompt), decode = nmse(plain, full, prompt, all), evicted = nmse(reference, half, prompt, all),
                 effect = nmse(full, half, prompt, all);
    char numbers[128];
    snprintf(numbers, sizeof numbers, "%.1e|%.1e|%.1e|%.1e", prefill, decode, evicted, effect);
    print_row(kind, numbers, "");
    CHECK(attention.calls > 0, "the reference saw no attention");
    const double noise_prefill = nmse(plain, other_path, 0, prompt), noise_decode = nmse(plain, other_path, prompt, all);
    CHECK(prefill <= std::max(NMSE_PREFILL, OF_TWO_PATHS * noise_prefill), "prefill: NMSE %.2e, llama.cpp's two paths %.2e", prefill, noise_prefill);
    CHECK(decode <= std::max(NMSE_DECODE, OF_TWO_PATHS * noise_decode), "decode: NMSE %.2e, llama.cpp's two paths %.2e", decode, noise_decode);
    CHECK(evicted <= NMSE_DECODE, "half evicted: NMSE %.2e to the reference", evicted);
    CHECK(effect >= LEAST_EFFECT, "evicting half changed nothing: NMSE %.2e", effect);
    llama_model_free(stock);
    llama_model_free(ours);
    return check::finish(path);
}

// ---- all of them ----

struct outcome {
    int         status = 0; // of waitpid
    std::string output;
    bool ok() const { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
    std::string how() const {
        return WIFSIGNALED(status) ? WTERMSIG(status) == SIGALRM ? "took too long" : std::string("died of ") + strsignal(WTERMSIG(status)) : "fails";
    }
};

outcome spawn(const std::vector<std::string> & command) {
    int ends[2];
    if (pipe(ends) != 0) {
        perror("pipe");
        exit(1);
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS); // stays over exec
        setenv("GGML_NO_BACKTRACE", "1", 1);
        dup2(ends[1], STDOUT_FILENO);
        dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        std::vector<char *> arguments;
        for (const std::string & a : command) {
            arguments.push_back(const_cast<char *>(a.c_str()));
        }
        arguments.push_back(nullptr);
        execv(arguments[0], arguments.data());
        _exit(127);
    }
    close(ends[1]);
    outcome o;
    char    buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) {
        o.output.append(buffer, (size_t) n);
    }
    close(ends[0]);
    waitpid(child, &o.status, 0);
    return o;
}

struct row {
    std::string name, kind, numbers, note;
    bool        runs = false, refused = false;
};

std::vector<std::string> split(const std::string & text, char by) {
    std::vector<std::string> parts(1);
    for (char c : text) {
        if (c == by) {
            parts.emplace_back();
        } else {
            parts.back().push_back(c);
        }
    }
    return parts;
}

row run_file(const char * self, const char * libraries, const std::string & name, const std::string & path) {
    row r;
    r.name = name;
    const outcome o = spawn({self, libraries, "--run", path});
    for (const std::string & line : split(o.output, '\n')) {
        const auto parts = split(line, '|');
        if (parts.size() == 7 && parts[0] == "row") {
            r.kind    = parts[1];
            r.numbers = parts[2] + " | " + parts[3] + " | " + parts[4] + " | " + parts[5];
            r.refused = !parts[6].empty();
            r.note    = parts[6];
        }
    }
    if (!o.ok()) {
        r.note += (r.note.empty() ? "" : "; ") + o.how();
        printf("%s", o.output.c_str());
    }
    r.runs = o.ok() && !r.refused;
    CHECK(o.ok(), "%s %s", name.c_str(), o.how().c_str());
    if (r.numbers.empty()) {
        r.numbers = " |  |  | ";
    }
    remove(path.c_str());
    return r;
}

void print_table(const std::vector<row> & rows, const std::vector<row> & unwritten, FILE * to) {
    const auto count = [&](bool row::* what) { return (int) std::count_if(rows.begin(), rows.end(), [&](const row & r) { return r.*what; }); };
    fprintf(to, "%d files: %d run, %d refused by name, %d neither.\n\n", (int) rows.size(), count(&row::runs), count(&row::refused),
            (int) rows.size() - count(&row::runs) - count(&row::refused));
    fprintf(to, "| file | kind | prefill | decode | half evicted | effect | |\n|---|---|---|---|---|---|---|\n");
    for (const row & r : rows) {
        fprintf(to, "| %s | %s | %s | %s |\n", r.name.c_str(), r.kind.c_str(), r.numbers.c_str(), r.note.c_str());
    }
    if (!unwritten.empty()) {
        fprintf(to, "\nFiles that llama.cpp's test does not write:\n\n| file | why |\n|---|---|\n");
        for (const row & r : unwritten) {
            fprintf(to, "| %s | %s |\n", r.name.c_str(), r.note.c_str());
        }
    }
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 4 && strcmp(argv[2], "--run") == 0) {
        return run_model(argv[1], argv[3]);
    }
    if (argc < 4) {
        fprintf(stderr, "usage: architectures_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS FIXTURES [--table FILE] [NAME...]\n");
        return 2;
    }
    const std::string libraries = argv[1], folder_of_models = argv[2], fixtures = argv[3];
    const char * table = nullptr;
    std::vector<std::string> names;
    for (int i = 4; i < argc; i++) {
        if (strcmp(argv[i], "--table") == 0 && i + 1 < argc) {
            table = argv[++i];
        } else {
            names.push_back(argv[i]);
        }
    }
    const auto wanted = [&](const std::string & name) { return names.empty() || std::find(names.begin(), names.end(), name) != names.end(); };
    std::vector<row> rows, unwritten;
    const auto done = [&](const row & r) {
        printf("  %-22s %-34s %s %s\n", r.name.c_str(), r.kind.c_str(), r.numbers.c_str(), r.note.c_str());
        rows.push_back(r);
    };
    for (const std::string & line : split(spawn({fixtures, libraries, "list"}).output, '\n')) {
        const auto parts = split(line, '\t');
        if (parts.size() != 2 || !wanted(parts[0])) {
            continue;
        }
        row r;
        r.name = parts[0];
        r.note = parts[1];
        const outcome written = r.note.empty() ? spawn({fixtures, libraries, "write", folder_of_models, r.name}) : outcome{};
        if (!written.ok()) {
            const std::string said = split(written.output, '\n')[0];
            r.note = "llama.cpp " + written.how() + (said.empty() ? "" : ": " + said);
        }
        if (r.note.empty()) {
            done(run_file(argv[0], argv[1], r.name, folder_of_models + "/" + r.name + ".gguf"));
        } else {
            unwritten.push_back(r);
        }
    }
    for (const char * arch : HYBRIDS) {
        synthetic_model m;
        m.arch    = arch;
        m.n_layer = 6;
        const std::string name = std::string("synthetic-") + arch, path = folder_of_models + "/" + name + ".gguf";
        if (wanted(name)) {
            m.write(path);
            done(run_file(argv[0], argv[1], name, path));
        }
    }
    for (const std::string & name : names) {
        CHECK(std::any_of(rows.begin(), rows.end(), [&](const row & r) { return r.name == name; }), "%s was not run", name.c_str());
    }
    if (FILE * to = table ? fopen(table, "w") : nullptr) {
        print_table(rows, unwritten, to);
        fclose(to);
    }
    printf("%d run, %d refused\n", (int) std::count_if(rows.begin(), rows.end(), [](const row & r) { return r.runs; }),
           (int) std::count_if(rows.begin(), rows.end(), [](const row & r) { return r.refused; }));
    return check::finish("architectures_test");
}
