// Writes llama.cpp's own architecture fixtures: a small GGUF file of random weights for each architecture that it can make
// one for. The metadata come from its test-llama-archs.cpp, which is taken as it stands in the source that the build has
// fetched; only its main is given another name.
//
//   fixtures LIBRARIES list                    one line for each: name, and why llama.cpp skips it if it does
//   fixtures LIBRARIES write FOLDER NAME...    writes FOLDER/NAME.gguf; a child process for each is the caller's business,
//                                              as llama.cpp may end the process on a fixture of its own
#define main test_llama_archs_main
#include "test-llama-archs.cpp"
#undef main

#include <functional>

namespace {

constexpr size_t SEED  = 1;
constexpr float  STDEV = 0.1f;

// what llama.cpp said at the level of an error
std::string errors;

void keep_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        errors += text;
    }
}

std::string name_of(llm_arch arch, bool moe) { return std::string(llm_arch_name(arch)) + (moe ? "-moe" : "-dense"); }

void for_each_fixture(const std::function<void(llm_arch, bool moe)> & f) {
    for (const llm_arch & arch : llm_arch_all()) {
        for (bool moe : {false, true}) {
            if (arch != LLM_ARCH_UNKNOWN && (moe ? moe_implemented(arch) : !moe_mandatory(arch))) {
                f(arch, moe);
            }
        }
    }
}

const char * why_skipped(llm_arch arch) {
    if (!arch_supported(arch)) {
        return "its test skips the architecture";
    }
    return llama_model_saver_supports_arch(arch) ? "" : "its saver skips the architecture";
}

// llama_model_init_from_user counts the tensors that a model makes against those of the metadata, so there must be as many.
// How many is learnt from the refusal; what they are called does not matter.
gguf_context_ptr with_as_many_tensors(const gguf_context * metadata) {
    int given = 0, wanted = 0;
    const char * counts = strstr(errors.c_str(), "expected ");
    if (!counts || sscanf(counts, "expected %d, got %d", &given, &wanted) != 2) {
        return nullptr;
    }
    gguf_context_ptr padded(gguf_init_empty());
    gguf_set_kv(padded.get(), metadata);
    for (int i = 0; i < wanted; i++) {
        ggml_tensor t{};
        t.type = GGML_TYPE_F16;
        i < given ? ggml_set_name(&t, gguf_get_tensor_name(metadata, i)) : ggml_format_name(&t, "padding.%d", i);
        gguf_add_tensor(padded.get(), &t);
    }
    return padded;
}

bool write(llm_arch arch, bool moe, const std::string & path) {
    gguf_context_ptr   metadata = get_gguf_ctx(arch, moe);
    tensor_data_params data     = {SEED, STDEV};
    llama_model_params params   = llama_model_default_params();
    ggml_backend_dev_t none[]   = {nullptr};
    params.devices = none;
    while (metadata) {
        errors.clear();
        llama_model_ptr model(llama_model_init_from_user(metadata.get(), set_tensor_data, &data, params));
        if (model) {
            // on some of its fixtures llama.cpp ends the process here, and its own test with it
            llama_context_ptr context(llama_init_from_model(model.get(), llama_context_default_params()));
            llama_model_save_to_file(model.get(), path.c_str());
            return context != nullptr;
        }
        metadata = with_as_many_tensors(metadata.get());
    }
    return false;
}

} // namespace

int main(int argc, char ** argv) {
    const std::string what = argc > 2 ? argv[2] : "";
    if (what != "list" && (what != "write" || argc < 5)) {
        fprintf(stderr, "usage: fixtures FOLDER_OF_LLAMA_CPP_LIBRARIES list | write FOLDER NAME...\n");
        return 2;
    }
    llama_log_set(keep_errors, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    int failed = 0;
    for_each_fixture([&](llm_arch arch, bool moe) {
        const std::string name = name_of(arch, moe);
        if (what == "list") {
            printf("%s\t%s\n", name.c_str(), why_skipped(arch));
            return;
        }
        for (int i = 4; i < argc; i++) {
            if (name == argv[i] && !write(arch, moe, std::string(argv[3]) + "/" + name + ".gguf")) {
                printf("%s", errors.c_str());
                failed++;
            }
        }
    });
    return failed == 0 ? 0 : 1;
}
