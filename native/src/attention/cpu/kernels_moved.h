// The statistic of moved queries (moved_sums.h). Included by kernels_isa.h inside its unnamed namespace.
//
// As in a prefill the lanes of a vector are queries, S^T = K Q^T. A slot's sums need p and so the softmax' denominator, which is known when all slots
// have been gone over: the exponentials of the unit's queries are kept until then, as to compute them again costs several times what it
// takes to read them from the third-level cache. The block's own copy is gone over first: it mostly has the largest scores, so that the
// running maximum seldom changes.

// ---- queries ----

// x, y: rows of lanes
inline void butterfly(float * x, float * y, int32_t lanes) {
    for (int32_t c = 0; c < lanes; c += VL) {
        const vf a = vload(x + c), b = vload(y + c);
        vstore(x + c, a + b);
        vstore(y + c, a - b);
    }
}

// hadamard_blocks over the rows of q [dim][lanes], without the factor 1 / sqrt(block)
inline void hadamard_rows(float * q, int32_t dim, int32_t block, int32_t lanes) {
    for (int32_t begin = 0; begin + block <= dim; begin += block) {
        for (int32_t step = 1; step < block; step *= 2) {
            for (int32_t i = begin; i < begin + block; i += 2 * step) {
                for (int32_t j = i; j < i + step; j++) {
                    butterfly(q + (size_t) j * lanes, q + (size_t) (j + step) * lanes, lanes);
                }
            }
        }
    }
}

// turn_query of all queries of a block: q [dim][lanes]
void turn_rows(const moved_job & job, int32_t block, float * q, int32_t lanes) {
    if (job.pairs == 0) {
        return;
    }
    const float * cosine = job.turns + (size_t) block * 2 * job.pairs, * sine = cosine + job.pairs;
    if (job.hadamard > 1) {
        hadamard_rows(q, job.k.dim, job.hadamard, lanes);
    }
    for (int32_t i = 0; i < job.pairs; i++) {
        float * x = q + (size_t) (job.offset + (job.halves ? i : 2 * i)) * lanes, * y = job.halves ? x + (size_t) job.pairs * lanes : x + lanes;
        const vf co = vset(cosine[i]), si = vset(sine[i]);
        for (int32_t c = 0; c < lanes; c += VL) {
            const vf a = vload(x + c), b = vload(y + c);
            vstore(x + c, a * co - b * si);
            vstore(y + c, a * si + b * co);
        }
    }
    if (job.hadamard > 1) {
        hadamard_rows(q, job.k.dim, job.hadamard, lanes);
        const float f = 1.0f / (float) job.hadamard;
        for (int32_t i = 0; i < job.k.dim / job.hadamard * job.hadamard * lanes; i += VL) {
            vstore(q + i, vload(q + i) * f);
        }
    }
}

// q [dk][lanes], scaled; row: room for a query
void moved_query_rows(const moved_job & job, const moved_unit & u, int32_t query_head, float scale, float * q, int32_t lanes, float * row) {
    const int32_t dk = job.k.dim;
    for (int32_t t = 0; t < lanes; t++) {
        if (t < u.n) {
            halves_to_f32<row_f16>(job.queries + ((size_t) (u.first + t) * job.n_head + query_head) * dk, dk, row);
            for (int32_t d = 0; d < dk; d++) {
                q[(size_t) d * lanes + t] = row[d] * scale;
            }
        } else {
            for (int32_t d = 0; d < dk; d++) {
                q[(size_t) d * lanes + t] = 0.0f;
            }
        }
    }
}

// ---- scores ----

// which slots of a block the queries, which stand at [first, last], see
inline int moved_view(const moved_job & job, const int32_t * pos, int32_t n, int32_t first, int32_t last) {
    int32_t lo, hi;
    span_of(pos, n, lo, hi);
    if (lo >= job.end || (job.window != 0 && hi <= first - job.window)) {
        return hidden;
    }
    return hi < job.end && (job.window == 0 || lo > last - job.window) ? visible : mixed;
}

// adds ALiBi and hides what a query does not see: its own copy's tokens before begin and behind it (own), or slots from job.end on, and what is
// before its window; at: positions of the queries, pos: of the slots
void moved_mask(const moved_job & job, float * s, int32_t lanes, const int32_t * at, const int32_t * pos, int32_t n, bool own, int32_t begin, float slope, bool hide) {
    const vi hide_all = (vi) vset(-__builtin_inff());
    for (int32_t t = 0; t < n; t++, s += lanes) {
        const int32_t p = pos[t];
        const bool out = own ? p < begin : p >= job.end;
        for (int32_t c = 0; c < lanes; c += VL) {
            const vi distance = *(const vi *) (at + c) - p;
            vf x = vload(s + c) - __builtin_convertvector(distance, vf) * slope;
            if (hide) {
                vi seen = out ? vi{} : ~vi{};
                if (own) {
                    seen &= (vi) (distance >= 0);
                }
                if (job.window != 0) {
                    seen &= (vi) (distance < job.window);
                }
                x = (vf) (((vi) x & seen) | (hide_all & ~seen));
            }
            vstore(s + c, x);
        }
    }
}

inline void moved_scores(const moved_job & job, const float * k, const float * q, int32_t n, int32_t lanes, float * s) {
    const int32_t dk = job.k.dim;
    if (job.k.tiled) {
        for (int32_t t = 0; t < n; t += 16) {
            gemm<false>(s + t * lanes, lanes, k + (size_t) t * dk, 16, 1, q, lanes, 16, lanes, dk);
        }
    } else {
        gemm<false>(s, lanes, k, 1, job.dkp, q, lanes, round_up(n, 8), lanes, dk);
    }
    if (job.softcap != 0.0f) {
        apply_softcap(s, n * lanes, job.softcap);
    }
}

struct moved_queries_at {
    alignas(64) int32_t pos[query_tile], moved[query_tile]; // where they stood and where they stand
    int32_t first, last;                                    // of moved
};

// One round over the copy of the block's tokens: tiles of 16 slots that hold some of them, four at a time.
void moved_own(const moved_job & job, const moved_unit & u, const head_store & h, const moved_queries_at & at, float * scratch, const moved_scratch & l, int32_t lanes, float slope_factor) {
    const float * q = scratch + l.own;
    float * k = scratch + l.k, * v = scratch + l.v, * s = scratch + l.own_s;
    alignas(64) int32_t pos[slot_block];
    int32_t last = at.pos[0];
    for (int32_t t = 1; t < u.n; t++) {
        last = max_of(last, at.pos[t]);
    }
    for (int32_t slot = 0; slot < h.n;) {
        int32_t n = 0;
        for (; slot < h.n && n < slot_block; slot += 16) {
            const int32_t count = min_of(16, h.n - slot);
            bool any = false;
            for (int32_t i = 0; i < count; i++) {
                any |= h.pos[slot + i] >= u.begin && h.pos[slot + i] <= last;
            }
            if (!any) {
                continue;
            }
            keys_to_f32(job.k, h, slot, count, job.dkp, k + (size_t) n * (job.k.tiled ? job.k.dim : job.dkp));
            if (u.outputs && !job.v.part) {
                block_to_f32(job.v, h.v + (size_t) slot * job.v.row_bytes, count, v + (size_t) n * job.dvp, job.dvp);
            }
            for (int32_t i = 0; i < 16; i++) {
                pos[n + i] = i < count ? h.pos[slot + i] : -1; // before the block
            }
            if (count < 16) { // a weight of 0 times what lies there must be 0
                if (!job.k.tiled) {
                    __builtin_memset(k + (size_t) (n + count) * job.dkp, 0, (size_t) (16 - count) * job.dkp * 4);
                }
                if (!job.v.part) {
                    __builtin_memset(v + (size_t) (n + count) * job.dvp, 0, (size_t) (16 - count) * job.dvp * 4);
                }
            }
            n += 16;
        }
        if (n == 0) {
            continue;
        }
        for (int32_t g = 0; g < u.n_group; g++) {
            float * o = u.outputs ? scratch + l.o + (size_t) g * lanes * job.dvp : nullptr, * max = scratch + l.max + (size_t) g * lanes, * sum = scratch + l.sum + (size_t) g * lanes;
            moved_scores(job, k, q + (size_t) g * job.dkp * lanes, n, lanes, s);
            const float slope = job.slopes ? job.slopes[u.head * job.group + u.group + g] * slope_factor : 0.0f;
            moved_mask(job, s, lanes, at.pos, pos, n, true, u.begin, slope, true);
            if (!follow_maximum(s, n, lanes, max, sum, o, job.dvp)) {
                continue;
            }
            block_exponentials(s, n, lanes, max, sum);
            if (o) {
                gemm<true>(o, job.dvp, s, lanes, 1, job.v.part ? k : v, job.v.part ? job.dkp : job.dvp, round_up(u.n, 8), job.dvp, n);
            }
        }
    }
}

// ---- sums ----

// to[i] and to[VL / 2 + i] become the sums over the lanes of w and w^2, w = p[i][lane] * f[lane], of VL / 2 slots
inline void column_moments(const float * p, const float * f, int32_t lanes, float * to) {
    constexpr int N = VL / 2;
    vf a[VL];
    for (int i = 0; i < N; i++, p += lanes) {
        vf x = vload(p) * vload(f), y = x * x;
        for (int32_t c = VL; c < lanes; c += VL) {
            const vf w = vload(p + c) * vload(f + c);
            x += w;
            y += w * w;
        }
        a[i] = x;
        a[N + i] = y;
    }
    vstore(to, sums<1>(a));
}

void moved(const moved_job & job, const moved_unit & u, float * scratch) {
    const head_store & h = job.heads[u.head];
    const int32_t lanes = round_up(u.n, 16), dvp = job.dvp, first_head = u.head * job.group + u.group;
    const moved_scratch l = moved_scratch_of(job.tile, job.n_group, job.dkp, dvp, job.n_slots);
    float * q = scratch + l.q, * own = scratch + l.own, * max = scratch + l.max, * sum = scratch + l.sum, * k = scratch + l.k, * v = scratch + l.v;

    const float scale = job.softcap != 0.0f ? job.scale / job.softcap : job.scale * log2_e;
    moved_queries_at at;
    for (int32_t t = 0; t < lanes; t++) {
        at.pos[t]   = job.pos[u.first + (t < u.n ? t : 0)];
        at.moved[t] = at.pos[t] + job.end - u.begin;
    }
    span_of(at.moved, lanes, at.first, at.last);
    for (int32_t g = 0; g < u.n_group; g++) {
        const size_t to = (size_t) g * job.dkp * lanes;
        moved_query_rows(job, u, first_head + g, scale, own + to, lanes, k);
        __builtin_memcpy(q + to, own + to, (size_t) job.k.dim * lanes * 4);
        turn_rows(job, u.block, q + to, lanes);
    }
    if (u.outputs) {
        __builtin_memset(scratch + l.o, 0, (size_t) u.n_group * lanes * dvp * 4);
    }
    for (int32_t i = 0; i < u.n_group * lanes; i++) {
        max[i] = no_score;
        sum[i] = 0.0f;
    }
    moved_own(job, u, h, at, scratch, l, lanes, log2_e);

    const size_t kept_block = (size_t) slot_block * lanes;
    for (int32_t slot = 0, block = 0; slot < h.n; slot += slot_block, block++) {
        const int32_t n = min_of(slot_block, h.n - slot);
        float * s_max = scratch + l.s_max + (size_t) block * job.n_group * lanes;
        const int view = moved_view(job, h.pos + slot, n, at.first, at.last);
        if (view != hidden) {
            keys_to_f32(job.k, h, slot, n, job.dkp, k);
        }
        bool have_v = false;
        for (int32_t g = 0; g < u.n_group; g++, s_max += lanes) {
            s_max[0] = __builtin_inff(); // nothing kept
            if (view == hidden) {
                continue;
            }
            float * s = scratch + l.s + ((size_t) block * job.n_group + g) * kept_block, * max_g = max + (size_t) g * lanes;
            float * o = u.outputs ? scratch + l.o + (size_t) g * lanes * dvp : nullptr;
            moved_scores(job, k, q + (size_t) g * job.dkp * lanes, n, lanes, s);
            if (view == mixed || job.slopes) {
                moved_mask(job, s, lanes, at.moved, h.pos + slot, n, false, 0, job.slopes ? job.slopes[first_head + g] * log2_e : 0.0f, view == mixed);
            }
            if (!follow_maximum(s, n, lanes, max_g, sum + (size_t) g * lanes, o, dvp)) {
                continue;
            }
            block_exponentials(s, n, lanes, max_g, sum + (size_t) g * lanes);
            __builtin_memcpy(s_max, max_g, (size_t) lanes * 4);
            if (!o) {
                continue;
            }
            if (!have_v && !job.v.part) {
                block_to_f32(job.v, h.v + (size_t) slot * job.v.row_bytes, n, v, dvp);
                have_v = true;
            }
            gemm<true>(o, dvp, s, lanes, 1, job.v.part ? k : v, job.v.part ? job.dkp : dvp, round_up(u.n, 8), dvp, n);
        }
    }

    alignas(64) float inverse[query_tile], factor[query_tile];
    for (int32_t g = 0; g < u.n_group; g++) {
        float * max_g = max + (size_t) g * lanes, * moments = scratch + l.moments + (size_t) g * 2 * job.n_slots;
        float * output = scratch + l.output + (size_t) g * (dvp + 16);
        __builtin_memset(output, 0, (size_t) (dvp + 16) * 4);
        for (int32_t t = 0; t < lanes; t++) {
            float z = sum[(size_t) g * lanes + t];
            const float old = max_g[t];
            inverse[t] = 0.0f;
            if (job.sinks) {
                const float sink = job.sinks[first_head + g] * log2_e, m = sink > old ? sink : old;
                z = z * exp2_scalar(old - m) + exp2_scalar(sink - m);
                max_g[t] = m;
            }
            if (t >= u.n || !(z > 0.0f)) {
                continue; // nobody, or a query that sees nothing
            }
            inverse[t] = 1.0f / z;
            if (u.outputs) {
                const float * row = scratch + l.o + ((size_t) g * lanes + t) * dvp, f = exp2_scalar(old - max_g[t]) * inverse[t];
                vf length{};
                for (int32_t d = 0; d < dvp; d += VL) {
                    const vf x = vload(row + d) * f;
                    vstore(output + d, vload(output + d) + x);
                    length += x * x;
                }
                output[dvp] += lane_sum(length);
            }
        }
        for (int32_t slot = 0, block = 0; slot < h.n; slot += slot_block, block++) {
            const int32_t n = min_of(slot_block, h.n - slot);
            float * s = scratch + l.s + ((size_t) block * job.n_group + g) * kept_block;
            const float * s_max = scratch + l.s_max + ((size_t) block * job.n_group + g) * lanes;
            float * to = moments + (size_t) slot * 2;
            if (s_max[0] == __builtin_inff()) {
                __builtin_memset(to, 0, slot_block * 2 * 4);
                continue;
            }
            if (n % VL != 0) { // what lies behind the last slot is multiplied, but not used
                __builtin_memset(s + n * lanes, 0, (size_t) (round_up(n, VL) - n) * lanes * 4);
            }
            for (int32_t c = 0; c < lanes; c += VL) {
                vstore(factor + c, vexp2(vload(s_max + c) - vload(max_g + c)) * vload(inverse + c));
            }
            for (int32_t i = 0; i < n; i += VL / 2, to += VL) {
                column_moments(s + i * lanes, factor, lanes, to);
            }
        }
    }
}

void moved_add(const moved_job & job, const moved_unit & u, const float * scratch) {
    const int32_t n = job.heads[u.head].n;
    const moved_scratch l = moved_scratch_of(job.tile, job.n_group, job.dkp, job.dvp, job.n_slots);
    for (int32_t g = 0; g < u.n_group; g++) {
        const float * moments = scratch + l.moments + (size_t) g * 2 * job.n_slots, * output = scratch + l.output + (size_t) g * (job.dvp + 16);
        float * p = job.p[u.head] + (size_t) (u.group + g) * job.capacity[u.head], * squares = job.squares[u.head] + (size_t) (u.group + g) * job.capacity[u.head];
        for (int32_t i = 0; i < n; i += VL / 2, moments += VL) {
            const int32_t count = min_of(VL / 2, n - i);
            for (int32_t j = 0; j < count; j++) {
                p[i + j] += moments[j];
                squares[i + j] += moments[VL / 2 + j];
            }
        }
        if (!u.outputs) {
            continue;
        }
        const size_t head = (size_t) u.head * job.group + u.group + g;
        for (int32_t d = 0; d < job.v.dim; d++) {
            job.output[head * job.v.dim + d] += output[d];
        }
        job.length2[head] += output[job.dvp];
    }
}

// ---- losses ----

void moved_losses(const row_format & f, const head_store & h, int32_t begin, int32_t end, int32_t group, const float * squares, size_t capacity, const float * output,
                  const float * weights, float * scores, float * scratch) {
    const int32_t dvp = round_up(f.dim, 16);
    float * v = scratch, * mean = scratch + (size_t) slot_block * dvp; // [group][dvp]
    for (int32_t g = 0; g < group; g++) {
        for (int32_t d = 0; d < dvp; d++) {
            mean[(size_t) g * dvp + d] = d < f.dim ? output[(size_t) g * f.dim + d] : 0.0f;
        }
    }
    for (int32_t slot = begin; slot < end; slot += slot_block) {
        const int32_t n = min_of(slot_block, end - slot);
        block_to_f32(f, (f.part ? h.k : h.v) + (size_t) slot * f.row_bytes, n, v, dvp);
        for (int32_t i = 0; i < n; i += VL) {
            const int32_t count = min_of(VL, n - i);
            vf loss{};
            for (int32_t g = 0; g < group; g++) {
                const float * m = mean + (size_t) g * dvp, * e = squares + (size_t) g * capacity + slot + i;
                vf a[VL];
                for (int j = 0; j < VL; j++) {
                    a[j] = vf{};
                    const float * row = v + (size_t) (i + j) * dvp;
                    for (int32_t d = 0; j < count && d < dvp; d += VL) {
                        const vf x = vload(row + d) - vload(m + d);
                        a[j] += x * x;
                    }
                }
                vf square{};
                if (count == VL) {
                    square = vload(e);
                } else {
                    for (int32_t j = 0; j < count; j++) {
                        square[j] = e[j];
                    }
                }
                loss += square * weights[g] * sums<1>(a);
            }
            add_columns(scores + slot + i, loss, count);
        }
    }
}
