#include "synthetic_model.h"

#include "ggml.h"
#include "gguf.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

class writer {
public:
    writer(const synthetic_model & m) : m(m), rng(m.seed), gguf(gguf_init_empty()) {
        ctx = ggml_init({(size_t) 256 << 20, nullptr, false});
        gguf_set_val_str(gguf, "general.architecture", m.arch);
        gguf_set_val_str(gguf, "tokenizer.ggml.model", "no_vocab");
        number("vocab_size", m.n_vocab);
        number("context_length", 8192);
        number("embedding_length", m.n_embd);
        number("block_count", m.n_layer);
        if (has_recurrent_layers()) {
            std::vector<int32_t> n_ff, n_head_kv;
            for (int32_t i = 0; i < m.n_layer; i++) {
                n_ff.push_back(has_ff(i) ? m.n_ff : 0);
                n_head_kv.push_back(has_attention(i) ? m.n_head_kv : 0);
            }
            numbers("feed_forward_length", n_ff);
            numbers("attention.head_count_kv", n_head_kv);
        } else {
            number("feed_forward_length", m.n_ff);
            number("attention.head_count_kv", m.n_head_kv);
        }
        number("attention.head_count", m.n_head);
        tensor("token_embd.weight", 1.0f, m.n_embd, m.n_vocab);
        norm("output_norm.weight", m.n_embd);
        if (std::string(m.arch) != "gemma2") { // which has none of its own
            tensor("output.weight", 3.0f / std::sqrt((float) m.n_embd), m.n_embd, m.n_vocab);
        }
    }
    ~writer() {
        gguf_free(gguf);
        ggml_free(ctx);
    }

    bool is(const char * arch) const { return std::string(m.arch) == arch; }
    // which layers are what is said by the header's numbers of KV heads and of the feed-forward network
    bool has_recurrent_layers() const { return is("granitehybrid") || is("nemotron_h"); }
    bool has_attention(int32_t layer) const { return !has_recurrent_layers() || layer % (is("nemotron_h") ? 3 : 2) == 1; }
    bool has_ff(int32_t layer) const { return !is("nemotron_h") || layer % 3 == 2; }

    std::string key(const char * name) const { return std::string(m.arch) + "." + name; }
    void number(const char * name, int32_t value) { gguf_set_val_u32(gguf, key(name).c_str(), (uint32_t) value); }
    void numbers(const char * name, const std::vector<int32_t> & values) { gguf_set_arr_data(gguf, key(name).c_str(), GGUF_TYPE_INT32, values.data(), values.size()); }
    void text(const char * name, const char * value) { gguf_set_val_str(gguf, key(name).c_str(), value); }
    void real(const char * name, float value) { gguf_set_val_f32(gguf, key(name).c_str(), value); }

    void tensor(const std::string & name, float deviation, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, float mean = 0.0f) {
        ggml_tensor * t = n2 > 1 ? ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n0, n1, n2)
                        : n1 > 1 ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n0, n1) : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n0);
        std::normal_distribution<float> normal(mean, deviation);
        for (int64_t i = 0; i < ggml_nelements(t); i++) {
            ((float *) t->data)[i] = normal(rng);
        }
        ggml_set_name(t, name.c_str());
        gguf_add_tensor(gguf, t);
    }
    // [1][n]
    void column(const std::string & name, int64_t n, float from, float to) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 1, n);
        std::uniform_real_distribution<float> between(from, to);
        for (int64_t i = 0; i < n; i++) {
            ((float *) t->data)[i] = between(rng);
        }
        ggml_set_name(t, name.c_str());
        gguf_add_tensor(gguf, t);
    }
    void matrix(const std::string & name, int64_t n0, int64_t n1, float gain = 1.0f) { tensor(name, gain / std::sqrt((float) n0), n0, n1); }
    void norm(const std::string & name, int64_t n) {
        ggml_tensor * t = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n);
        std::uniform_real_distribution<float> near_one(0.9f, 1.1f);
        for (int64_t i = 0; i < n; i++) {
            ((float *) t->data)[i] = near_one(rng);
        }
        ggml_set_name(t, name.c_str());
        gguf_add_tensor(gguf, t);
    }

    const synthetic_model & m;
    std::mt19937   rng;
    gguf_context * gguf;
    ggml_context * ctx;
};

void write_llama(writer & w, const std::string & b) {
    const synthetic_model & m = w.m;
    constexpr float sharp = 1.6f; // attention that is not uniform
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_q.weight", m.n_embd, m.n_head * m.head_dim, sharp);
    w.matrix(b + "attn_k.weight", m.n_embd, m.n_head_kv * m.head_dim, sharp);
    w.matrix(b + "attn_v.weight", m.n_embd, m.n_head_kv * m.head_dim);
    w.matrix(b + "attn_output.weight", m.n_head * m.head_dim, m.n_embd);
    w.norm(b + "ffn_norm.weight", m.n_embd);
    w.matrix(b + "ffn_gate.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_up.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_down.weight", m.n_ff, m.n_embd);
}

void write_hunyuan(writer & w, const std::string & b) { // whose norms come after RoPE
    write_llama(w, b);
    w.norm(b + "attn_q_norm.weight", w.m.head_dim);
    w.norm(b + "attn_k_norm.weight", w.m.head_dim);
}

void write_stablelm(writer & w, const std::string & b) {
    write_llama(w, b);
    w.tensor(b + "attn_norm.bias", 0.1f, w.m.n_embd);
    w.tensor(b + "ffn_norm.bias", 0.1f, w.m.n_embd);
}

void write_gemma2(writer & w, const std::string & b) {
    write_llama(w, b);
    w.norm(b + "post_attention_norm.weight", w.m.n_embd);
    w.norm(b + "post_ffw_norm.weight", w.m.n_embd);
}

void write_gemma4(writer & w, const std::string & b, bool sliding) {
    const synthetic_model & m   = w.m;
    const int32_t           dim = sliding ? m.head_dim_swa : m.head_dim;
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_q.weight", m.n_embd, m.n_head * dim);
    w.matrix(b + "attn_k.weight", m.n_embd, m.n_head_kv * dim);
    w.matrix(b + "attn_v.weight", m.n_embd, m.n_head_kv * dim);
    w.matrix(b + "attn_output.weight", m.n_head * dim, m.n_embd);
    w.tensor(b + "attn_q_norm.weight", 0.02f, dim, 1, 1, 1.6f / std::sqrt((float) dim)); // logits are not scaled
    w.norm(b + "attn_k_norm.weight", dim);
    w.norm(b + "post_attention_norm.weight", m.n_embd);
    w.norm(b + "ffn_norm.weight", m.n_embd);
    w.matrix(b + "ffn_gate.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_up.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_down.weight", m.n_ff, m.n_embd);
    w.norm(b + "post_ffw_norm.weight", m.n_embd);
}

void write_mpt(writer & w, const std::string & b) {
    const synthetic_model & m = w.m;
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_qkv.weight", m.n_embd, (m.n_head + 2 * m.n_head_kv) * m.head_dim, 1.6f);
    w.matrix(b + "attn_output.weight", m.n_head * m.head_dim, m.n_embd);
    w.norm(b + "ffn_norm.weight", m.n_embd);
    w.matrix(b + "ffn_up.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_down.weight", m.n_ff, m.n_embd);
}

// as many experts are used as there are: which ones is a choice that the last bit of attention's output could tip
constexpr int32_t N_EXPERT = 2;

void write_gpt_oss(writer & w, const std::string & b) {
    const synthetic_model & m = w.m;
    constexpr float sharp = 1.6f;
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_q.weight", m.n_embd, m.n_head * m.head_dim, sharp);
    w.matrix(b + "attn_k.weight", m.n_embd, m.n_head_kv * m.head_dim, sharp);
    w.matrix(b + "attn_v.weight", m.n_embd, m.n_head_kv * m.head_dim);
    w.matrix(b + "attn_output.weight", m.n_head * m.head_dim, m.n_embd);
    w.tensor(b + "attn_output.bias", 0.1f, m.n_embd);
    w.tensor(b + "attn_sinks.weight", 1.0f, m.n_head, 1, 1, m.sink);
    w.norm(b + "post_attention_norm.weight", m.n_embd);
    w.matrix(b + "ffn_gate_inp.weight", m.n_embd, N_EXPERT);
    w.tensor(b + "ffn_gate_inp.bias", 0.1f, N_EXPERT);
    const float by_embd = 1.0f / std::sqrt((float) m.n_embd), by_ff = 1.0f / std::sqrt((float) m.n_ff);
    w.tensor(b + "ffn_gate_exps.weight", by_embd, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_up_exps.weight", by_embd, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_down_exps.weight", by_ff, m.n_ff, m.n_embd, N_EXPERT);
    w.tensor(b + "ffn_gate_exps.bias", 0.1f, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_up_exps.bias", 0.1f, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_down_exps.bias", 0.1f, m.n_embd, N_EXPERT);
}

constexpr int32_t Q_RANK = 48, NOPE_DIM = 32, VALUE_DIM = 32;

void write_deepseek2(writer & w, const std::string & b) {
    const synthetic_model & m = w.m;
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_q_a.weight", m.n_embd, Q_RANK);
    w.norm(b + "attn_q_a_norm.weight", Q_RANK);
    w.matrix(b + "attn_q_b.weight", Q_RANK, m.n_head * (m.rope_dim + NOPE_DIM));
    w.matrix(b + "attn_kv_a_mqa.weight", m.n_embd, m.latent + m.rope_dim);
    w.norm(b + "attn_kv_a_norm.weight", m.latent);
    w.tensor(b + "attn_k_b.weight", 0.1f, NOPE_DIM, m.latent, m.n_head);
    w.tensor(b + "attn_v_b.weight", 0.1f, m.latent, VALUE_DIM, m.n_head);
    w.matrix(b + "attn_output.weight", m.n_head * VALUE_DIM, m.n_embd);
    w.norm(b + "ffn_norm.weight", m.n_embd);
    w.matrix(b + "ffn_gate.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_up.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_down.weight", m.n_ff, m.n_embd);
}

void write_grok(writer & w, const std::string & b) {
    const synthetic_model & m = w.m;
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.matrix(b + "attn_q.weight", m.n_embd, m.n_head * m.head_dim);
    w.matrix(b + "attn_k.weight", m.n_embd, m.n_head_kv * m.head_dim);
    w.matrix(b + "attn_v.weight", m.n_embd, m.n_head_kv * m.head_dim);
    w.matrix(b + "attn_output.weight", m.n_head * m.head_dim, m.n_embd);
    w.norm(b + "attn_output_norm.weight", m.n_embd);
    w.norm(b + "ffn_norm.weight", m.n_embd);
    w.norm(b + "layer_output_norm.weight", m.n_embd);
    w.matrix(b + "ffn_gate_inp.weight", m.n_embd, N_EXPERT);
    w.tensor(b + "ffn_gate_exps.weight", 0.1f, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_up_exps.weight", 0.1f, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_down_exps.weight", 0.1f, m.n_ff, m.n_embd, N_EXPERT);
}

constexpr int32_t CONV = 4, STATE = 16, DT_RANK = 8;

void write_mamba(writer & w, const std::string & b) {
    const int32_t n = w.m.n_embd, inner = 2 * n;
    w.norm(b + "attn_norm.weight", n);
    w.matrix(b + "ssm_in.weight", n, 2 * inner);
    w.tensor(b + "ssm_conv1d.weight", 0.3f, CONV, inner);
    w.tensor(b + "ssm_conv1d.bias", 0.1f, inner);
    w.matrix(b + "ssm_x.weight", inner, DT_RANK + 2 * STATE);
    w.matrix(b + "ssm_dt.weight", DT_RANK, inner);
    w.tensor(b + "ssm_dt.bias", 0.1f, inner);
    w.tensor(b + "ssm_a", 0.1f, STATE, inner);
    w.tensor(b + "ssm_d", 0.1f, inner);
    w.matrix(b + "ssm_out.weight", inner, n);
}

// Mamba 2
constexpr int32_t STATE_HEADS = 4, GROUPS = 2;

void write_state(writer & w, const std::string & b) {
    const int32_t n = w.m.n_embd, inner = 2 * n, convolved = inner + 2 * GROUPS * STATE;
    w.matrix(b + "ssm_in.weight", n, inner + convolved + STATE_HEADS);
    w.tensor(b + "ssm_conv1d.weight", 0.3f, CONV, convolved);
    w.tensor(b + "ssm_conv1d.bias", 0.1f, convolved);
    w.tensor(b + "ssm_dt.bias", 0.1f, STATE_HEADS);
    w.column(b + "ssm_a", STATE_HEADS, -0.2f, -0.02f); // what a state forgets with each token
    w.column(b + "ssm_d", STATE_HEADS, 0.5f, 1.0f);
    w.tensor(b + "ssm_norm.weight", 0.05f, inner / GROUPS, GROUPS, 1, 1.0f);
    w.matrix(b + "ssm_out.weight", inner, n);
}

void write_attention(writer & w, const std::string & b, int32_t gate = 1) {
    const synthetic_model & m = w.m;
    constexpr float sharp = 1.6f;
    w.matrix(b + "attn_q.weight", m.n_embd, m.n_head * m.head_dim * gate, sharp);
    w.matrix(b + "attn_k.weight", m.n_embd, m.n_head_kv * m.head_dim, sharp);
    w.matrix(b + "attn_v.weight", m.n_embd, m.n_head_kv * m.head_dim);
    w.matrix(b + "attn_output.weight", m.n_head * m.head_dim, m.n_embd);
}

void write_ff(writer & w, const std::string & b, bool gated = true) {
    if (gated) {
        w.matrix(b + "ffn_gate.weight", w.m.n_embd, w.m.n_ff);
    }
    w.matrix(b + "ffn_up.weight", w.m.n_embd, w.m.n_ff);
    w.matrix(b + "ffn_down.weight", w.m.n_ff, w.m.n_embd);
}

// a layer has a state or attention, and a feed-forward network; Nemotron-H: one of the three
void write_hybrid(writer & w, const std::string & b, int32_t layer) {
    w.norm(b + "attn_norm.weight", w.m.n_embd);
    if (w.has_attention(layer)) {
        write_attention(w, b);
    } else if (w.is("granitehybrid") || !w.has_ff(layer)) {
        write_state(w, b);
    }
    if (w.is("granitehybrid")) {
        w.norm(b + "ffn_norm.weight", w.m.n_embd);
    }
    if (w.has_ff(layer)) {
        write_ff(w, b, w.is("granitehybrid"));
    }
}

// both in every layer
void write_falcon_h1(writer & w, const std::string & b) {
    w.norm(b + "attn_norm.weight", w.m.n_embd);
    write_state(w, b);
    write_attention(w, b);
    w.norm(b + "ffn_norm", w.m.n_embd);
    write_ff(w, b);
}

// gated delta net: as many key heads as groups
constexpr int32_t DELTA_DIM = 32, DELTA_KEY_HEADS = 2, DELTA_VALUE_HEADS = 4, DELTA_VALUES = DELTA_DIM * DELTA_VALUE_HEADS, FULL_ATTENTION_INTERVAL = 2;

void write_qwen(writer & w, const std::string & b, int32_t layer) {
    const synthetic_model & m = w.m;
    const bool next = w.is("qwen3next");
    w.norm(b + "attn_norm.weight", m.n_embd);
    w.norm(b + "post_attention_norm.weight", m.n_embd);
    if ((layer + 1) % FULL_ATTENTION_INTERVAL == 0) {
        write_attention(w, b, 2); // its output is gated
        w.norm(b + "attn_q_norm.weight", m.head_dim);
        w.norm(b + "attn_k_norm.weight", m.head_dim);
    } else {
        const int32_t convolved = 2 * DELTA_DIM * DELTA_KEY_HEADS + DELTA_VALUES;
        w.matrix(b + "attn_qkv.weight", m.n_embd, convolved);
        w.matrix(b + "attn_gate.weight", m.n_embd, DELTA_VALUES);
        w.tensor(b + "ssm_conv1d.weight", 0.3f, CONV, convolved);
        w.tensor(b + "ssm_dt.bias", 0.1f, DELTA_VALUE_HEADS);
        w.tensor(b + "ssm_a", 0.02f, DELTA_VALUE_HEADS, 1, 1, -0.1f);
        if (next) {
            w.matrix(b + "ssm_ba.weight", m.n_embd, 2 * DELTA_VALUE_HEADS);
        } else {
            w.matrix(b + "ssm_beta.weight", m.n_embd, DELTA_VALUE_HEADS);
            w.matrix(b + "ssm_alpha.weight", m.n_embd, DELTA_VALUE_HEADS);
        }
        w.norm(b + "ssm_norm.weight", DELTA_DIM);
        w.matrix(b + "ssm_out.weight", DELTA_VALUES, m.n_embd);
    }
    if (!next) {
        write_ff(w, b);
        return;
    }
    const float by_embd = 1.0f / std::sqrt((float) m.n_embd), by_ff = 1.0f / std::sqrt((float) m.n_ff);
    w.matrix(b + "ffn_gate_inp.weight", m.n_embd, N_EXPERT);
    w.tensor(b + "ffn_gate_exps.weight", by_embd, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_up_exps.weight", by_embd, m.n_embd, m.n_ff, N_EXPERT);
    w.tensor(b + "ffn_down_exps.weight", by_ff, m.n_ff, m.n_embd, N_EXPERT);
    w.tensor(b + "ffn_gate_inp_shexp.weight", by_embd, m.n_embd);
    w.matrix(b + "ffn_gate_shexp.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_up_shexp.weight", m.n_embd, m.n_ff);
    w.matrix(b + "ffn_down_shexp.weight", m.n_ff, m.n_embd);
}

} // namespace

void synthetic_model::write(const std::string & path) const {
    writer w(*this);
    const std::string a = arch;
    if (a == "stablelm") {
        w.real("attention.layer_norm_epsilon", 1e-5f);
        w.number("rope.dimension_count", rotary_dim > 0 ? rotary_dim : head_dim);
        w.number("attention.key_length", head_dim);
        w.number("attention.value_length", head_dim);
        w.tensor("output_norm.bias", 0.1f, n_embd);
    } else if (a == "mpt") {
        w.real("attention.layer_norm_epsilon", 1e-5f);
        w.real("attention.max_alibi_bias", 8.0f);
    } else {
        w.real("attention.layer_norm_rms_epsilon", 1e-5f);
        w.number("attention.key_length", head_dim);
        w.number("attention.value_length", head_dim);
        w.number("rope.dimension_count", head_dim);
    }
    if (yarn) {
        w.text("rope.scaling.type", "yarn");
        w.real("rope.scaling.factor", 4.0f);
        w.number("rope.scaling.original_context_length", 128);
    }
    if (rope_factors) {
        w.tensor("rope_freqs.weight", 0.5f, head_dim / 2, 1, 1, 3.0f);
    }
    if (a == "gemma2") {
        w.real("attn_logit_softcapping", 20.0f);
        w.real("final_logit_softcapping", 30.0f);
        w.number("attention.sliding_window", n_swa);
    } else if (a == "gemma4") {
        std::vector<int8_t> sliding;
        for (int32_t i = 0; i < n_layer; i++) {
            sliding.push_back(i % 2 == 0);
        }
        gguf_set_arr_data(w.gguf, w.key("attention.sliding_window_pattern").c_str(), GGUF_TYPE_BOOL, sliding.data(), sliding.size());
        w.number("attention.sliding_window", n_swa);
        w.number("attention.key_length_swa", head_dim_swa);
        w.number("attention.value_length_swa", head_dim_swa);
        w.number("rope.dimension_count_swa", head_dim_swa);
        w.number("embedding_length_per_layer_input", 0);
        if (n_shared_kv > 0) {
            w.number("attention.shared_kv_layers", n_shared_kv);
        }
        w.tensor("rope_freqs.weight", 0.1f, head_dim / 2, 1, 1, 1.0f);
    } else if (a == "gpt-oss") {
        w.number("attention.sliding_window", n_swa);
        w.number("expert_count", N_EXPERT);
        w.number("expert_used_count", N_EXPERT);
        w.number("expert_feed_forward_length", n_ff);
    } else if (a == "deepseek2") {
        w.number("leading_dense_block_count", n_layer);
        w.number("attention.q_lora_rank", Q_RANK);
        w.number("attention.kv_lora_rank", latent);
        w.number("attention.key_length", latent + rope_dim);
        w.number("attention.value_length", latent);
        w.number("attention.key_length_mla", NOPE_DIM + rope_dim);
        w.number("attention.value_length_mla", VALUE_DIM);
        w.number("rope.dimension_count", rope_dim);
        w.number("expert_count", 2);
        w.number("expert_used_count", 1);
        w.number("expert_shared_count", 1);
        w.number("expert_feed_forward_length", 32);
    } else if (a == "granitehybrid" || a == "nemotron_h" || a == "falcon-h1") {
        if (a == "nemotron_h") {
            w.real("attention.layer_norm_epsilon", 1e-5f);
        }
        w.number("ssm.conv_kernel", CONV);
        w.number("ssm.inner_size", 2 * n_embd);
        w.number("ssm.state_size", STATE);
        w.number("ssm.time_step_rank", STATE_HEADS);
        w.number("ssm.group_count", GROUPS);
    } else if (a == "qwen3next" || a == "qwen35") {
        w.number("ssm.conv_kernel", CONV);
        w.number("ssm.inner_size", DELTA_VALUES);
        w.number("ssm.state_size", DELTA_DIM);
        w.number("ssm.time_step_rank", DELTA_VALUE_HEADS);
        w.number("ssm.group_count", DELTA_KEY_HEADS);
        w.number("full_attention_interval", FULL_ATTENTION_INTERVAL);
        if (a == "qwen35") {
            w.numbers("rope.dimension_sections", {head_dim / 6, head_dim / 6, head_dim / 2 - 2 * (head_dim / 6), 0});
        } else {
            w.number("expert_count", N_EXPERT);
            w.number("expert_used_count", N_EXPERT);
            w.number("expert_feed_forward_length", n_ff);
            w.number("expert_shared_feed_forward_length", n_ff);
        }
    } else if (a == "grok") {
        w.number("expert_count", N_EXPERT);
        w.number("expert_used_count", N_EXPERT);
        w.number("expert_feed_forward_length", n_ff);
        w.real("embedding_scale", 1.0f);
        w.real("attention.output_scale", 0.5f);
        w.real("attn_logit_softcapping", 2.0f); // of scores that reach it
    } else if (a == "mamba") {
        w.number("ssm.conv_kernel", CONV);
        w.number("ssm.inner_size", 2 * n_embd);
        w.number("ssm.state_size", STATE);
        w.number("ssm.time_step_rank", DT_RANK);
    }
    for (int32_t i = 0; i < n_layer; i++) {
        const std::string b = "blk." + std::to_string(i) + ".";
        if (w.has_recurrent_layers()) {
            write_hybrid(w, b, i);
            continue;
        }
        if (a == "qwen3next" || a == "qwen35") {
            write_qwen(w, b, i);
            continue;
        }
        a == "gemma4" ? write_gemma4(w, b, i % 2 == 0) : a == "falcon-h1" ? write_falcon_h1(w, b) : a == "gemma2" ? write_gemma2(w, b) : a == "mpt" ? write_mpt(w, b) : a == "gpt-oss" ? write_gpt_oss(w, b)
            : a == "deepseek2" ? write_deepseek2(w, b) : a == "mamba" ? write_mamba(w, b) : a == "stablelm" ? write_stablelm(w, b) : a == "hunyuan-dense" ? write_hunyuan(w, b) : a == "grok" ? write_grok(w, b) : write_llama(w, b);
    }
    if (!gguf_write_to_file(w.gguf, path.c_str(), false)) {
        fprintf(stderr, "cannot write %s\n", path.c_str());
        exit(1);
    }
}
