// The statistic of moved queries against a reference in double precision, written from its definition (native/README.md, "Moved queries"): a
// query turned by end - begin of its block sees the slots of positions below end and a causal copy of its block, whose keys it meets unturned.
#include "support.h"

#include "attention/cpu/moved_sums.h"

#include <algorithm>
#include <memory>

namespace kvasir_test {

namespace {

constexpr double eps = 0x1p-24;
constexpr double negligible = 0x1p-40; // the kernels may drop weights below this share of the largest

double worst; // error relative to the tolerance, over all cases of a part

struct shape {
    ggml_type type_k = GGML_TYPE_F16, type_v = GGML_TYPE_F16;
    bool      tiled = true, latent = false;
    int32_t   dk = 64, dv = 64, group = 3, heads = 1;
    int32_t   slots = 128;           // of the first head; the others differ
    int32_t   blocks = 1, last = 64; // tokens of the last block
    int32_t   stride = 1;
    int32_t   beyond = 0;            // tokens that are held from end on
    bool      gaps = false, shuffled = false, repeated = false, sinks = false;
    int32_t   window = 0, hadamard = 0, pairs = 32, offset = 0;
    bool      halves = true;
    float     softcap = 0, max_bias = 0;
};

std::string describe(const shape & s) {
    char text[400];
    snprintf(text, sizeof text, "%s %s/%s tiled=%d latent=%d dk=%d dv=%d group=%d heads=%d slots=%d blocks=%d last=%d stride=%d beyond=%d gaps=%d shuffled=%d repeated=%d sinks=%d window=%d hadamard=%d pairs=%d offset=%d halves=%d softcap=%g alibi=%g",
        cpu_kernels_name(), type_name(s.type_k), type_name(s.type_v), s.tiled, s.latent, s.dk, s.dv, s.group, s.heads, s.slots, s.blocks, s.last, s.stride, s.beyond,
        s.gaps, s.shuffled, s.repeated, s.sinks, s.window, s.hadamard, s.pairs, s.offset, s.halves, s.softcap, s.max_bias);
    return text;
}

// y = H x / sqrt(block) from the definition of Walsh's matrix: (-1)^(number of common bits)
void hadamard(std::vector<double> & x, int32_t block) {
    if (block <= 1) {
        return;
    }
    const std::vector<double> from = x;
    for (size_t at = 0; at + (size_t) block <= x.size(); at += (size_t) block) {
        for (int32_t i = 0; i < block; i++) {
            double sum = 0;
            for (int32_t j = 0; j < block; j++) {
                sum += __builtin_popcount((unsigned) (i & j)) % 2 ? -from[at + (size_t) j] : from[at + (size_t) j];
            }
            x[at + (size_t) i] = sum / std::sqrt(block);
        }
    }
}

// a sum and what it may be off by
struct value {
    double x = 0, tolerance = 0;
};

struct problem {
    shape s;
    moved_sums_node node;
    rotation turned;
    std::vector<head_store> heads;
    std::vector<std::vector<char>> k_rows, v_rows; // ggml's layout, for the reference
    std::vector<guarded> memory;
    std::vector<size_t>  capacity;
    std::vector<float *> p, squares;
    int32_t n_head, n_entries = 0;
    std::vector<std::vector<value>> expected_p, expected_squares; // [KV head][group][slot]
    std::vector<value> expected_output, expected_length2;

    template <class T> T * take(size_t n, std::mt19937_64 & rng) {
        memory.emplace_back(n * sizeof(T), rng() % 4 != 0, alignof(T));
        return memory.back().as<T>();
    }

    problem(const shape & shape_, std::mt19937_64 & rng) : s(shape_), n_head(s.heads * s.group) {
        std::normal_distribution<float> normal;
        node.k = rows_format(s.type_k, s.dk, s.tiled);
        node.v = s.latent ? rows_part(node.k, s.dv) : rows_format(s.type_v, s.dv, false);
        node.n_head_kv = s.heads;
        node.n_head    = n_head;
        node.scale     = 1.0f / std::sqrt((float) s.dk);
        node.softcap   = s.softcap;
        node.max_bias  = s.max_bias;
        node.window    = s.window;
        for (int32_t i = 0; i < s.pairs; i++) {
            turned.omega.push_back(std::pow(10000.0, -(double) i / s.pairs));
        }
        turned.offset   = s.offset;
        turned.halves   = s.halves;
        turned.hadamard = s.hadamard;
        node.turned     = &turned;

        // the blocks end where what is read ends
        const int32_t tokens = (s.blocks - 1) * moved_block_tokens + s.last;
        const int32_t begin  = std::max(0, s.slots - tokens) + (s.gaps ? s.slots : 0);
        node.end             = begin + tokens;
        std::vector<int32_t> pos;
        for (int32_t b = 0; b < s.blocks; b++) {
            moved_block block{ begin + b * moved_block_tokens, (int32_t) pos.size(), 0, b % 2 == 0 };
            for (int32_t t = s.stride / 2; t < (b + 1 < s.blocks ? moved_block_tokens : s.last); t += s.stride, block.n++) {
                pos.push_back(block.begin + t);
            }
            node.blocks.push_back(block); // the stride may leave a short one without queries
        }
        n_entries = (int32_t) pos.size();
        int32_t * at = take<int32_t>(pos.size(), rng);
        std::copy(pos.begin(), pos.end(), at);
        node.pos = at;
        uint16_t * q = take<uint16_t>(pos.size() * (size_t) n_head * (size_t) s.dk, rng);
        random_row(GGML_TYPE_F16, (int32_t) pos.size() * n_head * s.dk, (char *) q, rng);
        node.queries = q;

        heads.resize((size_t) s.heads);
        for (int32_t i = 0; i < s.heads; i++) {
            head_store & h = heads[(size_t) i];
            const int32_t read = node.end + s.beyond, n = h.n = std::min(i == 0 ? s.slots + s.beyond : (int32_t) (rng() % (uint64_t) (s.slots + s.beyond + 1)), read);
            k_rows.emplace_back((size_t) n * node.k.row_bytes);
            v_rows.emplace_back((size_t) n * own_bytes(node.v));
            h.k = take<char>(rows_bytes(node.k, n), rng);
            h.v = s.latent ? h.k : take<char>(rows_bytes(node.v, n), rng);
            memset(h.k, 0xff, rows_bytes(node.k, n)); // NaN behind the last slot of a tile
            h.pos = take<int32_t>((size_t) n, rng);
            std::vector<int32_t> held((size_t) read);
            for (int32_t j = 0; j < read; j++) {
                held[(size_t) j] = j;
            }
            std::shuffle(held.begin(), held.end(), rng);
            held.resize((size_t) n);
            if (!s.shuffled) {
                std::sort(held.begin(), held.end());
            }
            for (int32_t j = 0; j < n; j++) {
                h.pos[j] = s.repeated ? held[(size_t) j] / 3 * 3 : held[(size_t) j];
                random_row(s.type_k, s.dk, k_rows.back().data() + (size_t) j * node.k.row_bytes, rng);
                rows_set(node.k, h.k, j, k_rows.back().data() + (size_t) j * node.k.row_bytes);
                if (!s.latent) {
                    random_row(s.type_v, s.dv, v_rows.back().data() + (size_t) j * node.v.row_bytes, rng);
                    rows_set(node.v, h.v, j, v_rows.back().data() + (size_t) j * node.v.row_bytes);
                }
            }
            capacity.push_back((size_t) n + rng() % 5);
            p.push_back(take<float>((size_t) s.group * capacity.back(), rng));
            squares.push_back(take<float>((size_t) s.group * capacity.back(), rng));
        }
        node.heads    = heads.data();
        node.p        = p.data();
        node.squares  = squares.data();
        node.capacity = capacity.data();
        node.output   = take<double>((size_t) n_head * (size_t) s.dv, rng);
        node.length2  = take<double>((size_t) n_head, rng);
        if (s.sinks) {
            float * z = take<float>((size_t) n_head, rng);
            for (int32_t i = 0; i < n_head; i++) {
                z[i] = normal(rng) * 3;
            }
            node.sinks = z;
        }
        compute_expected();
    }

    static float before(size_t i) { return (float) (i % 5) / 4; } // what the sums held

    void run(int n_threads) {
        for (size_t i = 0; i < heads.size(); i++) {
            for (size_t j = 0; j < (size_t) s.group * capacity[i]; j++) {
                p[i][j] = squares[i][j] = before(j);
            }
        }
        for (size_t i = 0; i < (size_t) n_head * (size_t) s.dv; i++) {
            node.output[i] = before(i);
        }
        for (size_t i = 0; i < (size_t) n_head; i++) {
            node.length2[i] = before(i);
        }
        moved_sums(node, n_threads);
    }

    // all that was computed, as bytes
    std::vector<char> results() const {
        std::vector<char> all;
        const auto add = [&](const void * from, size_t bytes) { all.insert(all.end(), (const char *) from, (const char *) from + bytes); };
        for (size_t i = 0; i < heads.size(); i++) {
            add(p[i], (size_t) s.group * capacity[i] * sizeof(float));
            add(squares[i], (size_t) s.group * capacity[i] * sizeof(float));
        }
        add(node.output, (size_t) n_head * (size_t) s.dv * sizeof(double));
        add(node.length2, (size_t) n_head * sizeof(double));
        return all;
    }

    void compute_expected() {
        expected_output.resize((size_t) n_head * (size_t) s.dv);
        expected_length2.resize((size_t) n_head);
        for (int32_t i = 0; i < s.heads; i++) {
            expected_p.emplace_back((size_t) s.group * (size_t) heads[(size_t) i].n);
            expected_squares.emplace_back((size_t) s.group * (size_t) heads[(size_t) i].n);
            head(i);
        }
    }

    void head(int32_t i) {
        const head_store & h = heads[(size_t) i];
        const auto n = (size_t) h.n, dk = (size_t) s.dk, dv = (size_t) s.dv;
        std::vector<double> k(n * dk), v(n * dv), length(n), w(2 * n), o(dv), off(dv), turned_q;
        for (size_t j = 0; j < n; j++) {
            for (size_t d = 0; d < dk; d++) {
                k[j * dk + d] = row_value(s.type_k, k_rows[(size_t) i].data() + j * node.k.row_bytes, (int32_t) d);
                length[j] += k[j * dk + d] * k[j * dk + d];
            }
            length[j] = std::sqrt(length[j]);
            for (size_t d = 0; d < dv; d++) {
                v[j * dv + d] = s.latent ? k[j * dk + d] : row_value(s.type_v, v_rows[(size_t) i].data() + j * node.v.row_bytes, (int32_t) d);
            }
        }
        for (const moved_block & block : node.blocks) {
            const int32_t by = node.end - block.begin;
            for (int32_t e = block.first; e < block.first + block.n; e++) {
                for (int32_t g = 0; g < s.group; g++) {
                    const size_t hq = (size_t) (i * s.group + g);
                    std::vector<double> q(dk);
                    double q_length = 0;
                    for (size_t d = 0; d < dk; d++) {
                        q[d] = half_value(node.queries[((size_t) e * (size_t) n_head + hq) * dk + d]);
                        q_length += q[d] * q[d];
                    }
                    q_length = std::sqrt(q_length);
                    turned_q = q;
                    if (s.pairs > 0) {
                        hadamard(turned_q, s.hadamard);
                        for (int32_t r = 0; r < s.pairs; r++) {
                            double & x = turned_q[(size_t) (s.offset + (s.halves ? r : 2 * r))], & y = turned_q[(size_t) (s.offset + (s.halves ? r + s.pairs : 2 * r + 1))];
                            const double c = std::cos(by * turned.omega[(size_t) r]), sn = std::sin(by * turned.omega[(size_t) r]), x0 = x;
                            x = x0 * c - y * sn;
                            y = x0 * sn + y * c;
                        }
                        hadamard(turned_q, s.hadamard);
                    }
                    double slope = 0;
                    if (s.max_bias > 0) {
                        const int32_t l2 = 1 << (int32_t) std::floor(std::log2(n_head)), m = (int32_t) hq;
                        slope = m < l2 ? std::pow(2.0, -(double) s.max_bias / l2 * (m + 1)) : std::pow(2.0, -(double) s.max_bias / 2 / l2 * (2 * (m - l2) + 1));
                    }
                    double top = node.sinks ? node.sinks[hq] : -INFINITY, delta = 0;
                    // of a slot as it is and as a part of the copy
                    for (size_t j = 0; j < 2 * n; j++) {
                        const bool own = j >= n;
                        const size_t slot = own ? j - n : j;
                        const int32_t at = own ? node.pos[e] : node.pos[e] + by, key = h.pos[slot], distance = at - key;
                        const bool seen = (own ? key >= block.begin && key <= at : key < node.end) && (s.window == 0 || distance < s.window);
                        w[j] = -INFINITY;
                        if (!seen) {
                            continue;
                        }
                        double x = 0, mass = 0;
                        for (size_t d = 0; d < dk; d++) {
                            const double product = (own ? q[d] : turned_q[d]) * k[slot * dk + d];
                            x += product;
                            mass += std::fabs(product);
                        }
                        x *= node.scale;
                        if (s.softcap != 0) {
                            x = s.softcap * std::tanh(x / s.softcap);
                        }
                        const double bias = slope * distance;
                        w[j] = x - bias;
                        top  = std::max(top, w[j]);
                        // Error of a score: the rounding errors of a sum of dk terms grow like sqrt(dk), each is relative to the mass summed;
                        // scale, ALiBi and the change to base 2 add a few roundings of the score itself; tanh through 2^x is good to 2e-7 of
                        // the cap. The turned query is off by four roundings of its length and log2(block) of each Hadamard matrix.
                        const double turning = own || s.pairs == 0 ? 0 : 4 + (s.hadamard > 1 ? 2 * std::log2(s.hadamard) + 1 : 0);
                        delta = std::max(delta, eps * (mass * node.scale * (std::sqrt((double) s.dk) + 4) + turning * q_length * length[slot] * node.scale + 6 * (std::fabs(x) + std::fabs(bias))) + 2e-7 * s.softcap);
                    }
                    double z = node.sinks ? std::exp(node.sinks[hq] - top) : 0;
                    for (double & x : w) {
                        x = x == -INFINITY ? 0 : std::exp(x - top);
                        z += x;
                    }
                    if (z == 0) {
                        continue;
                    }
                    // a weight is off by the error of two scores and of 2^x (a few roundings), and by the sum's, which grows like sqrt(n)
                    const double relative = 2 * delta + eps * (std::sqrt(2.0 * (double) n) + 12), sums = eps * (n_entries + 8);
                    std::fill(o.begin(), o.end(), 0.0);
                    std::fill(off.begin(), off.end(), 0.0);
                    for (size_t j = 0; j < 2 * n; j++) {
                        const double x = w[j] / z;
                        if (j < n) {
                            value & ep = expected_p[(size_t) i][(size_t) g * n + j], & es = expected_squares[(size_t) i][(size_t) g * n + j];
                            ep.x += x;
                            ep.tolerance += x * (relative + sums) + negligible;
                            es.x += x * x;
                            es.tolerance += x * x * (2 * relative + 2 * eps + sums) + 2 * x * negligible;
                        }
                        for (size_t d = 0; block.outputs && d < dv; d++) {
                            const double y = v[(j < n ? j : j - n) * dv + d];
                            o[d] += x * y;
                            off[d] += std::fabs(y) * (x * (relative + sums) + negligible);
                        }
                    }
                    for (size_t d = 0; block.outputs && d < dv; d++) {
                        expected_output[hq * dv + d].x += o[d];
                        expected_output[hq * dv + d].tolerance += off[d];
                        expected_length2[hq].x += o[d] * o[d];
                        expected_length2[hq].tolerance += 2 * std::fabs(o[d]) * off[d] + off[d] * off[d] + o[d] * o[d] * (eps * (std::sqrt((double) dv) + 2) + sums);
                    }
                }
            }
        }
    }

    void close(const char * what, size_t at, double got, const value & expected, float held) {
        const double x = expected.x + held, tolerance = expected.tolerance + eps * (double) (node.blocks.size() * 4 + 1) * (double) held, error = std::fabs(got - x);
        worst = std::max(worst, error == 0 ? 0 : error / tolerance);
        CHECK(error <= tolerance, "%s\n  %s %zu: %.9g, expected %.9g +- %.2g", describe(s).c_str(), what, at, got, x, tolerance);
    }

    void check() {
        for (size_t i = 0; i < heads.size(); i++) {
            const auto n = (size_t) heads[i].n;
            for (size_t g = 0; g < (size_t) s.group; g++) {
                for (size_t j = 0; j < n; j++) {
                    const size_t at = g * capacity[i] + j;
                    close("p", j, p[i][at], expected_p[i][g * n + j], before(at));
                    close("squares", j, squares[i][at], expected_squares[i][g * n + j], before(at));
                }
                for (size_t at = g * capacity[i] + n; at < (g + 1) * capacity[i]; at++) {
                    CHECK(p[i][at] == before(at) && squares[i][at] == before(at), "%s\n  what is not a slot's was written", describe(s).c_str());
                }
            }
        }
        for (size_t at = 0; at < expected_output.size(); at++) {
            close("output", at, node.output[at], expected_output[at], before(at));
        }
        for (size_t at = 0; at < expected_length2.size(); at++) {
            close("length2", at, node.length2[at], expected_length2[at], before(at));
        }
    }
};

int32_t n_cases;

void one(const shape & s, std::mt19937_64 & rng) {
    problem p(s, rng);
    for (const std::string & name : instruction_sets()) {
        cpu_kernels_select(name.c_str());
        p.run(1);
        p.check();
        const std::vector<char> first = p.results();
        for (int n_threads : { 2, 3, 7 }) {
            p.run(n_threads);
            CHECK(p.results() == first, "%s\n  %d threads give other results than one", describe(s).c_str(), n_threads);
        }
    }
    n_cases++;
}

struct losses_shape {
    ggml_type type = GGML_TYPE_F16;
    bool      latent = false;
    int32_t   dk = 64, dv = 64, group = 3, heads = 2, slots = 100;
};

void losses(const losses_shape & s, std::mt19937_64 & rng) {
    std::normal_distribution<float> normal;
    std::vector<guarded> memory;
    const auto take = [&](size_t n) {
        memory.emplace_back(n * sizeof(float), rng() % 4 != 0, alignof(float));
        return memory.back().as<float>();
    };
    const auto random = [&](size_t n, bool positive) {
        float * x = take(n);
        for (size_t i = 0; i < n; i++) {
            x[i] = positive ? std::fabs(normal(rng)) : normal(rng);
        }
        return x;
    };
    const row_format k = rows_format(s.type, s.latent ? s.dk : s.dv, false), v = s.latent ? rows_part(k, s.dv) : k;
    const auto group = (size_t) s.group, dv = (size_t) s.dv;
    std::vector<head_store>    heads((size_t) s.heads);
    std::vector<const float *> squares;
    std::vector<size_t>        capacity;
    for (head_store & h : heads) {
        h.n = (int32_t) (rng() % (uint64_t) (s.slots + 1));
        memory.emplace_back((size_t) h.n * k.row_bytes, rng() % 4 != 0);
        (s.latent ? h.k : h.v) = memory.back().data();
        for (int32_t j = 0; j < h.n; j++) {
            random_row(s.type, k.dim, memory.back().data() + (size_t) j * k.row_bytes, rng);
        }
        h.score = take((size_t) h.n);
        capacity.push_back((size_t) h.n + rng() % 5);
        squares.push_back(random(group * capacity.back(), true));
    }
    moved_losses_node node;
    node.v         = v;
    node.heads     = heads.data();
    node.n_head_kv = s.heads;
    node.group     = s.group;
    node.squares   = squares.data();
    node.capacity  = capacity.data();
    node.output    = random(heads.size() * group * dv, false);
    node.weights   = random(heads.size() * group, true);
    for (const std::string & name : instruction_sets()) {
        cpu_kernels_select(name.c_str());
        std::vector<float> first;
        for (int n_threads : { 1, 2, 7 }) {
            std::vector<float> all;
            for (head_store & h : heads) {
                std::fill(h.score, h.score + h.n, 0.75f);
            }
            moved_losses(node, n_threads);
            for (size_t i = 0; i < heads.size(); i++) {
                all.insert(all.end(), heads[i].score, heads[i].score + heads[i].n);
                for (size_t j = 0; n_threads == 1 && j < (size_t) heads[i].n; j++) {
                    const char * row = (s.latent ? heads[i].k : heads[i].v) + j * k.row_bytes;
                    double x = 0.75, tolerance = 0;
                    for (size_t g = 0; g < group; g++) {
                        const float * o = node.output + (i * group + g) * dv;
                        const double  w = (double) node.weights[i * group + g] * (double) squares[i][g * capacity[i] + j];
                        for (size_t d = 0; d < dv; d++) {
                            const double y = row_value(s.type, row, (int32_t) d), difference = y - (double) o[d];
                            x += w * difference * difference;
                            // the value read, the difference, its square; then sums of terms that are all positive
                            tolerance += w * eps * (2 * std::fabs(difference) * (2 * std::fabs(y) + std::fabs(difference)) + difference * difference * (double) (dv / 4 + group + 4));
                        }
                    }
                    tolerance += eps * x;
                    const double error = std::fabs(heads[i].score[j] - x);
                    worst = std::max(worst, error / tolerance);
                    CHECK(error <= tolerance, "losses %s %s latent=%d dv=%d group=%d slot %zu of %d: %.9g, expected %.9g +- %.2g", name.c_str(), type_name(s.type), s.latent, s.dv, s.group, j,
                        heads[i].n, heads[i].score[j], x, tolerance);
                }
            }
            CHECK(first.empty() || first == all, "losses: %d threads give other results than one", n_threads);
            first = all;
        }
    }
    n_cases++;
}

const struct { int32_t k, v; } dims[] = { { 40, 40 }, { 64, 64 }, { 80, 80 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 64, 96 } };
const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

bool fits(ggml_type type, int32_t dim) { return type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || dim % 32 == 0; }

void rotate(shape & s, std::mt19937_64 & rng) {
    s.halves = rng() % 2;
    s.pairs  = rng() % 4 == 0 ? s.dk / 4 : s.dk / 2; // a part of the head is not turned
    s.offset = s.pairs < s.dk / 2 && rng() % 2 ? s.dk - 2 * s.pairs : 0;
    if (rng() % 8 == 0) {
        s.pairs = s.offset = 0;
    }
    s.hadamard = 0;
    if (rng() % 2) {
        for (s.hadamard = 2; s.hadamard < 128 && s.dk % (2 * s.hadamard) == 0; s.hadamard *= 2) {
        }
    }
}

} // namespace

void test_moved() {
    std::mt19937_64 rng(seed);
    worst = 0;
    n_cases = 0;
    for (int32_t n = 0; n <= 80; n += quick ? 9 : 1) { // every tail of the slots and of a block
        shape s;
        s.slots = n + (n % 3 ? 0 : 70);
        s.last  = std::max(1, std::min(n, 64));
        s.group = 2;
        s.dk = s.dv = 32;
        s.pairs = 16;
        s.type_k = types[n % 4];
        s.type_v = types[n / 4 % 4];
        s.tiled  = n % 4 < 2 && n % 8 != 1;
        one(s, rng);
    }
    shape none; // a block that the stride leaves no query of
    none.last   = 3;
    none.stride = 8;
    one(none, rng);
    for (const auto & d : dims) {
        for (ggml_type k : types) {
            for (ggml_type v : types) {
                if (!fits(k, d.k) || !fits(v, d.v) || rng() % (quick ? 13 : 3) != 0) {
                    continue;
                }
                shape s;
                s.type_k = k;
                s.type_v = v;
                s.tiled  = (k == GGML_TYPE_F16 || k == GGML_TYPE_BF16) && rng() % 4 != 0;
                s.dk     = d.k;
                s.dv     = d.v;
                s.group  = 1 + (int32_t) (rng() % 4);
                s.slots  = 40 + (int32_t) (rng() % 60);
                s.last   = 1 + (int32_t) (rng() % 40);
                rotate(s, rng);
                one(s, rng);
            }
        }
    }
    for (int i = 0; i < (quick ? 8 : 60); i++) {
        shape s;
        s.type_k   = types[rng() % 4];
        s.type_v   = types[rng() % 4];
        s.latent   = rng() % 5 == 0;
        s.tiled    = !s.latent && (s.type_k == GGML_TYPE_F16 || s.type_k == GGML_TYPE_BF16) && rng() % 4 != 0;
        s.dk       = s.latent ? 96 : 32 << rng() % 2;
        s.dv       = s.latent ? 64 : 32 << rng() % 2;
        s.heads    = 1 + (int32_t) (rng() % 3);
        s.group    = 1 + (int32_t) (rng() % (i % 10 == 0 ? 9 : 3));
        s.blocks   = 1 + (int32_t) (rng() % 3);
        s.last     = 1 + (int32_t) (rng() % 64);
        s.stride   = 1 << rng() % 4;
        s.slots    = (int32_t) (rng() % 300);
        s.beyond   = rng() % 3 ? 0 : (int32_t) (rng() % 90);
        s.gaps     = rng() % 3 == 0;
        s.shuffled = rng() % 3 == 0;
        s.repeated = rng() % 6 == 0;
        s.sinks    = rng() % 3 == 0;
        s.window   = rng() % 3 ? 0 : 1 + (int32_t) (rng() % 200);
        s.softcap  = rng() % 3 ? 0.0f : 30.0f;
        s.max_bias = rng() % 4 ? 0.0f : 8.0f;
        rotate(s, rng);
        one(s, rng);
    }
    for (int32_t n : { 9000, 40000 }) { // more than a unit keeps of 64 queries, and of 32
        if (!quick) {
            shape s;
            s.slots  = n;
            s.dk     = s.dv = 32;
            s.pairs  = 16;
            s.group  = 2;
            s.stride = n > 10000 ? 2 : 1;
            one(s, rng);
        }
    }
    for (const auto & d : dims) {
        for (ggml_type type : types) {
            for (int32_t group : { 1, 3, 8 }) {
                if (fits(type, d.v) && rng() % (quick ? 7 : 2) == 0) {
                    losses_shape s;
                    s.type   = type;
                    s.dk     = d.k;
                    s.dv     = d.v;
                    s.latent = d.k > d.v;
                    s.group  = group;
                    s.slots  = (int32_t) (rng() % (group == 3 ? 2500 : 150));
                    losses(s, rng);
                }
            }
        }
    }
    printf("moved %5d cases, worst error %.3f of the tolerance\n", n_cases, worst);
}

} // namespace kvasir_test
