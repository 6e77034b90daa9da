// What llama.cpp asserts or throws comes back as a status, and everything works afterwards.
#include "contexts.h"

using namespace kvasir_test;

namespace {

void test_assertions(llama_context * context) {
    int32_t value = 0;
    CHECK(kvasir_memory_first(context, 1 << 20, &value) == KVASIR_FAILED, "a sequence that does not exist");
    CHECK(strstr(kvasir_last_error(), "GGML_ASSERT"), "%s", kvasir_last_error());
    CHECK(kvasir_memory_remove(context, 1 << 20, 0, &value) == KVASIR_FAILED, "a sequence that does not exist");

    kvasir_sampling sampling{};
    sampling.temperature    = 0;
    sampling.repeat_penalty = 1;
    kvasir_sampler * sampler = nullptr;
    CHECK(kvasir_sampler_new(&sampling, 300, &sampler) == KVASIR_OK, "%s", kvasir_last_error());
    CHECK(kvasir_sampler_sample(sampler, context, -1, &value) == KVASIR_FAILED, "nothing was decoded");
    float * logits = nullptr;
    CHECK(kvasir_logits(context, 0, &logits) == KVASIR_INVALID_ARGUMENT, "nothing was decoded");

    llama_token tokens[] = {1, 2, 3};
    llama_batch batch    = llama_batch_get_one(tokens, 3);
    int32_t     result   = 0;
    CHECK(kvasir_decode(context, &batch, &result) == KVASIR_OK, "%s", kvasir_last_error());
    CHECK(kvasir_logits(context, 2, &logits) == KVASIR_OK, "%s", kvasir_last_error());
    int32_t best = 0;
    for (int32_t i = 1; i < 300; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    CHECK(kvasir_sampler_sample(sampler, context, -1, &value) == KVASIR_OK && value == best, "%d, %d", value, best);
    CHECK(kvasir_memory_first(context, 0, &value) == KVASIR_OK && value == 0, "%d", value);
    CHECK(kvasir_memory_remove(context, 0, 1, &value) == KVASIR_OK && value == 1, "%d", value);
    CHECK(kvasir_memory_clear(context) == KVASIR_OK, "%s", kvasir_last_error());
    CHECK(kvasir_memory_first(context, 0, &value) == KVASIR_OK && value == -1, "%d", value);
    kvasir_sampler_free(sampler);
}

void test_arguments(const llama_model * model) {
    kvasir_tokenizer * tokenizer = nullptr;
    CHECK(kvasir_tokenizer_new(llama_model_get_vocab(model), &tokenizer) == KVASIR_UNSUPPORTED, "a model without a vocabulary");
    size_t length = 0;
    CHECK(kvasir_tokenize(nullptr, "", 0, 0, 0, nullptr, 0, &length) == KVASIR_INVALID_ARGUMENT, "no tokenizer");
    CHECK(kvasir_memory_clear(nullptr) == KVASIR_INVALID_ARGUMENT, "no context");
    CHECK(kvasir_sampler_reset(nullptr) == KVASIR_INVALID_ARGUMENT, "no sampler");
    CHECK(kvasir_backends_load(nullptr) == KVASIR_INVALID_ARGUMENT, "no directory");
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: wall_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS\n");
        return 2;
    }
    folder = argv[2];
    load_llama(argv[1]);
    CHECK(kvasir_device("CPU", &proxy) == KVASIR_OK, "%s", kvasir_last_error());
    {
        model_file           m{synthetic_model()};
        llama_context *      context = nullptr;
        llama_context_params params  = context_params();
        params.n_ctx                 = 256;
        CHECK(kvasir_context_new(m.ours, &params, KVASIR_ATTENTION_NATIVE, &context, nullptr) == KVASIR_OK, "%s", kvasir_last_error());
        test_assertions(context);
        kvasir_context_free(context, nullptr);
        test_arguments(m.ours);
    }
    llama_backend_free();
    return check::finish("wall_test");
}
