// One token through all layers of a Mamba or Mamba-2 model and its head, in one launch of as many blocks as there are multiprocessors,
// which run at the same time. A block owns some channels and some rows of the residual stream in every layer. Half of its warps stream
// weights: rows of the matrices in the order in which they are needed, through a ring in shared memory that the copy engine keeps full
// also across layers, so that memory does not wait for anybody. The other half does what is between: convolution, recurrence, gate. Blocks
// pass each other the vectors that all need (token_hopper.cuh); nothing else waits for other blocks.
#include "token_hopper.cuh"

// What both kinds do: KIND 1 (Mamba) or 2 (Mamba-2).
template <typename W, int J, int KIND> struct Token {
    const TokenParams &p;
    unsigned char *shared;
    const Share channels, rows, extra;
    const u32 flag0;

    // Rows of B, C and Δ of Mamba-2; δ, B and C of Mamba.
    DEVICE static u32 small_count(const TokenParams &p) { return KIND == 1 ? p.rank + 2 * p.n : 2 * p.n + p.heads; }

    DEVICE Token(const TokenParams &p, unsigned char *shared)
        : p(p), shared(shared), channels(p.e, 8), rows(p.d, 1), extra(KIND == 2 ? small_count(p) : 0, 1), flag0(*p.epoch) {}
    DEVICE Share vocabulary() const { return Share(p.head ? p.vocab : 0, 1); }
    // What blocks pass each other: d, e, and what is small; of Mamba also what the last is the sum of, by block.
    DEVICE u64 *residuals() const { return p.exchange; }
    DEVICE u64 *gateds() const { return p.exchange + p.d; }
    DEVICE u64 *smalls() const { return p.exchange + p.d + p.e; }
    DEVICE u64 *partials() const { return p.exchange + p.d + p.e + small_count(p); }
    DEVICE float *floats(u32 offset) const { return reinterpret_cast<float *>(shared + offset); }
    DEVICE float *x_sums() const { return floats(p.sums_at); }
    DEVICE float *z_sums() const { return x_sums() + (channels.count << p.split); }
    DEVICE float *extra_sums() const { return z_sums() + (channels.count << p.split); }
    DEVICE float *out_sums() const { return extra_sums() + (extra.count << p.split); }

    DEVICE Ring<W, J> ring() const { return {shared, p.ring_at, p.slots}; }

    // Weights, in the order in which they are read.
    DEVICE void fetch() const {
        constexpr u32 A_LAYER = KIND == 1 ? 3 : 4;
        const void *const *pointers = reinterpret_cast<const void **>(shared + p.pointers_at);
        auto segments = [&](u32 index, Rows &rows_of) {
            const u32 layer = index / A_LAYER, which = index % A_LAYER;
            const W *in = layer < p.count ? static_cast<const W *>(pointers[4 * layer]) : nullptr;
            rows_of.cols = p.d, rows_of.split = p.split;
            if (layer == p.count) {
                if (!p.head || which) return false;
                rows_of.weight = p.head, rows_of.share = vocabulary();
            } else if (which + 1 == A_LAYER) {
                rows_of.weight = pointers[4 * layer + 1];
                rows_of.share = rows, rows_of.cols = p.e, rows_of.split = p.split_out;
            } else {
                // x before z; B, C and Δ of Mamba-2 before both.
                const bool first = KIND == 2 && which == 0, z = which == (KIND == 1 ? 1 : 2);
                const u32 row = first ? 2 * p.e : (KIND == 1) == z ? p.e : 0;
                rows_of.weight = in + size_t(row) * p.d, rows_of.share = first ? extra : channels;
            }
            return true;
        };
        ring().fetch(threadIdx.x % 32, p.under_way, segments);
    }

    // Each loop but once in the code: what a layer runs through has to stay in the instruction cache.
    DEVICE void stream() const {
        const float *const *pointers = reinterpret_cast<const float *const *>(shared + p.pointers_at);
        __shared__ float scratch[STREAMING];
        Stream<W, J> stream(ring(), threadIdx.x / 32);
        const u32 steps = 2 * p.count + (p.head ? 1 : 0);
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            const u32 l = step / 2;
            const bool out = step % 2, last = l == p.count;
            // Other blocks have theirs about when this one has.
            meet<BOTH>(out ? GATED : RESIDUAL);
            const float *scale = last ? p.final_norm : out ? (KIND == 2 ? pointers[4 * l + 3] : nullptr) : pointers[4 * l + 2];
            float x[J][8], *xs = floats(p.x_at);
            const float rho = gather<10>(xs, out ? p.e : p.d, out ? gateds() : residuals(), flag0 + l + out, scale,
                                         last ? p.final_eps : out ? p.gated_eps : p.eps, scratch);
            const u32 split = out ? p.split_out : p.split;
            take_piece(x, xs, split, rho);
            if (last) meet<32 * STREAMING>(AMONG_STREAMING);  // the sums of the head come where x was
            if (out) arrive<BOTH>(GATHERED);
            const u32 runs = last || out ? 1 : KIND == 1 ? 2 : 3;
#pragma unroll 1
            for (u32 run = 0; run < runs; run++) {
                const bool first = KIND == 2 && run == 0 && runs > 1;
                const u32 count = last ? vocabulary().count : out ? rows.count : first ? extra.count : channels.count;
                const bool z = run + 1 == runs;
                float *sums = last ? xs : out ? out_sums() : first ? extra_sums() : z ? z_sums() : x_sums();
                stream.rows(count, split, x, sums);
                if (!last) arrive<BOTH>(out ? OUT : first ? EXTRA : z ? Z : X);
            }
        }
        if (!p.head) return;
        meet<32 * STREAMING>(AMONG_STREAMING);
#pragma unroll 1
        for (u32 v = threadIdx.x; v < vocabulary().count; v += 32 * STREAMING)
            p.logits[vocabulary().from + v] = together(floats(p.x_at), v, p.split) * p.logits_scale;
    }

    // The pointers of a layer, which were asked for while the layer before ran. By all recurring warps.
    u64 word = 0;
    DEVICE void ask(u32 l, u32 t) {
        if (t < LAYER_WORDS && l < p.count) word = reinterpret_cast<const u64 *>(p.layers + l)[t];
    }
    DEVICE const TokenLayer &layer_of(u32 l) const {
        return *reinterpret_cast<const TokenLayer *>(shared + p.layer_at + l % 2 * sizeof(TokenLayer));
    }
    DEVICE const TokenLayer &enter(u32 l, u32 t) {
        u64 *layer = reinterpret_cast<u64 *>(shared + p.layer_at + l % 2 * sizeof(TokenLayer));
        if (t < LAYER_WORDS) layer[t] = word;
        meet<32 * RECURRING>(AMONG_RECURRING);
        ask(l + 1, t);
        // Norms are read by all when nobody has time: a block a line of each.
        if (t == 0) {
            const float *const *norms = reinterpret_cast<const float *const *>(shared + p.pointers_at) + 4 * l;
#pragma unroll 1
            for (u32 i = blockIdx.x * 32; i < p.e && norms[3]; i += gridDim.x * 32) to_l2(norms[3] + i);
            const float *next = l + 1 < p.count ? norms[6] : p.head ? p.final_norm : nullptr;
#pragma unroll 1
            for (u32 i = blockIdx.x * 32; i < p.d && next; i += gridDim.x * 32) to_l2(next + i);
        }
        return layer_of(l);
    }

    // What this block has of the residual stream before the first layer, which it gives to all.
    DEVICE float embed(u32 t) const {
        float x = 0.0f;
        if (t < rows.count) {
            x = to_float(static_cast<const W *>(p.embeddings)[size_t(p.token) * p.d + rows.from + t]) * p.embedding_scale;
            publish(residuals() + rows.from + t, x, flag0);
        }
        arrive<BOTH>(RESIDUAL);
        return x;
    }

    // The small vector that all blocks need.
    DEVICE void gather_small(float *to, u32 count, u32 t, u32 flag) const {
        constexpr u32 STEP = 32 * RECURRING;
        u64 x[2][1] = {};
        await(x, flag, u32(t < count) | u32(t + STEP < count) << 1, [&](u32 k) { return smalls() + t + k * STEP; });
#pragma unroll
        for (u32 k = 0; k < 2; k++)
            if (t + k * STEP < count) to[t + k * STEP] = number(x[k][0]);
    }

    // Of Mamba: thread 4 c + s has part s of channel c. In the projection to δ, B and C, whose weights lie by channel, the threads are in
    // groups that share the channels, and each has four outputs.
    static constexpr u32 EACH_GROUP = 10;
    struct ScanAhead {
        Convolution conv;
        Four<W> project[EACH_GROUP];
        Eight<W> dt[5];
        float4 h, a;
        float bias, skip;
    };
    DEVICE void load(ScanAhead &ahead, const TokenLayer &layer, u32 t) const {
        const u32 c = t / 4, sub = t % 4, channel = channels.from + c, quads = small_count(p) / 4, groups = 32 * RECURRING / quads, group = t / quads;
        if (t < channels.count) ahead.conv.load(layer, channels.from + t, p.e, p.taps);
#pragma unroll
        for (u32 i = 0; i < EACH_GROUP; i++) {
            const u32 from = group + i * groups;
            ahead.project[i].zero();
            if (group < groups && from < channels.count)
                ahead.project[i].load_once(static_cast<const W *>(layer.x) + size_t(channels.from + from) * small_count(p) + t % quads * 4);
        }
        ahead.h = ahead.a = make_float4(0, 0, 0, 0);
        if (c >= channels.count) return;
        const W *row = static_cast<const W *>(layer.dt) + size_t(channel) * p.rank;
#pragma unroll
        for (u32 i = 0; i < 5; i++) {
            ahead.dt[i].zero();
            if ((sub + 4 * i) * 8 < p.rank) ahead.dt[i].load_once(row + (sub + 4 * i) * 8);
        }
        if (sub < p.n / 4) {
            ahead.h = reinterpret_cast<const float4 *>(layer.state + size_t(channel) * p.n)[sub];
            ahead.a = reinterpret_cast<const float4 *>(layer.a + size_t(channel) * p.n)[sub];
        }
        ahead.bias = layer.dt_bias[channel], ahead.skip = layer.d[channel];
    }
    DEVICE void recur_scan() {
        __shared__ __align__(16) float act[MOST_CHANNELS];
        const u32 me = threadIdx.x - 32 * STREAMING, small_count = p.rank + 2 * p.n;
        ask(0, me);
        float *dbc = floats(p.small_at), resid = embed(me);
        ScanAhead ahead;
        load(ahead, enter(0, me), me);
#pragma unroll 1
        for (u32 l = 0; l < p.count; l++) {
            const TokenLayer &layer = layer_of(l);
            const u32 t = thread() - 32 * STREAMING, lane = t % 32, c = t / 4, sub = t % 4;
            const u32 flag = flag0 + l + 1, channel = channels.from + c;
            meet<BOTH>(X);
            if (t < MOST_CHANNELS) {
                float value = 0.0f;
                if (t < channels.count) {
                    const u32 channel = channels.from + t;
                    const float x = together(x_sums(), t, p.split), out = ahead.conv.run(layer, channel, p.e, p.taps, x);
                    value = silu(out);
                    layer.projected[channel] = x, layer.convolved[channel] = out, layer.activated[channel] = value;
                }
                act[t] = value;
            }
            meet<32 * RECURRING>(AMONG_RECURRING);
            // [groups, small_count] parts of this block's part of δ, B and C, where x was, which all have taken.
            {
                float *parts = floats(p.x_at);
                const u32 quads = small_count / 4, groups = 32 * RECURRING / quads, group = t / quads;
                float sum[4] = {};
#pragma unroll
                for (u32 i = 0; i < EACH_GROUP; i++) {
                    float w[4];
                    ahead.project[i].widen(w);
                    const float value = act[min(group + i * groups, MOST_CHANNELS - 1)];
#pragma unroll
                    for (u32 j = 0; j < 4; j++) sum[j] += w[j] * value;
                }
                if (group < groups) reinterpret_cast<float4 *>(parts)[t] = make_float4(sum[0], sum[1], sum[2], sum[3]);
                meet<32 * RECURRING>(AMONG_RECURRING);
                if (t < small_count) {
                    float all = 0.0f;
#pragma unroll 1
                    for (u32 i = 0; i < groups; i++) all += parts[i * small_count + t];
                    publish(partials() + size_t(blockIdx.x) * small_count + t, all, flag);
                }
            }
            // A warp a column of those that this block adds up, always in the same order.
#pragma unroll 1
            for (u32 o = blockIdx.x + t / 32 * gridDim.x; o < small_count; o += RECURRING * gridDim.x) {
                u64 of[MOST_BLOCKS / 32][1] = {};
                u32 late = 0;
#pragma unroll
                for (u32 k = 0; k < MOST_BLOCKS / 32; k++) late |= u32(lane + 32 * k < gridDim.x) << k;
                const u64 *from = partials() + size_t(lane) * small_count + o;
                await(of, flag, late, [&](u32 k) { return from + 32 * k * small_count; });
                float sum = 0.0f;
#pragma unroll
                for (u32 k = 0; k < MOST_BLOCKS / 32; k++) sum += number(of[k][0]);
                sum = warp_sum(sum);
                if (lane == 0) publish(smalls() + o, sum, flag), layer.dbc[o] = sum;
            }
            gather_small(dbc, small_count, t, flag);
            meet<32 * RECURRING>(AMONG_RECURRING);
            const float *b = dbc + p.rank, *query = b + p.n;
            if (blockIdx.x == 0 && t < p.n) layer.key[t] = b[t], layer.query[t] = query[t];

            float y = 0.0f, value = 0.0f;
            if (c < channels.count) {
                float sum = 0.0f;
#pragma unroll
                for (u32 i = 0; i < 5; i++) {
                    if ((sub + 4 * i) * 8 >= p.rank) break;
                    float w[8];
                    ahead.dt[i].widen(w);
                    const float4 *part = reinterpret_cast<const float4 *>(dbc + (sub + 4 * i) * 8);
                    const float4 low = part[0], high = part[1];
                    sum += w[0] * low.x + w[1] * low.y + w[2] * low.z + w[3] * low.w;
                    sum += w[4] * high.x + w[5] * high.y + w[6] * high.z + w[7] * high.w;
                }
                const u32 four = FULL >> (32 - 4) << (lane / 4 * 4);
                sum += __shfl_xor_sync(four, sum, 1);
                sum += __shfl_xor_sync(four, sum, 2);
                value = act[c];
                const float delta = softplus(sum + ahead.bias), step = delta * value, power = delta * LOG2_E;
                auto advance = [&](float h, float a, u32 n) {
                    h = exp2_fast(power * a) * h + step * b[n];
                    y += query[n] * h;
                    return h;
                };
                if (sub < p.n / 4) {
                    float4 h = ahead.h;
                    const float4 a = ahead.a;
                    h.x = advance(h.x, a.x, 4 * sub), h.y = advance(h.y, a.y, 4 * sub + 1);
                    h.z = advance(h.z, a.z, 4 * sub + 2), h.w = advance(h.w, a.w, 4 * sub + 3);
                    reinterpret_cast<float4 *>(layer.state + size_t(channel) * p.n)[sub] = h;
                }
                y += __shfl_xor_sync(four, y, 1);
                y += __shfl_xor_sync(four, y, 2);
                y += ahead.skip * value;
                if (sub == 0) layer.delta[channel] = delta, layer.core[channel] = y;
            }
            meet<BOTH>(Z);
            if (c < channels.count && sub == 0) {
                const float z = together(z_sums(), c, p.split), gated = y * silu(z);
                publish(gateds() + channel, gated, flag);
                layer.projected[p.e + channel] = z, layer.gated[channel] = gated;
            }
            arrive<BOTH>(GATED);
            // Not while numbers of other blocks are awaited, which would come behind these.
            meet<BOTH>(GATHERED);
            if (l + 1 < p.count) load(ahead, enter(l + 1, thread() - 32 * STREAMING), thread() - 32 * STREAMING);
            finish_layer(l, thread() - 32 * STREAMING, flag, resid);
        }
    }

    // Of Mamba-2: a warp a channel, N = 128 numbers of its state in fours.
    struct SsdAhead {
        static constexpr u32 EACH = (MOST_CHANNELS + RECURRING - 1) / RECURRING;
        Convolution conv, conv_small;
        float bias, a, d;
        float4 state[EACH];
    };
    DEVICE void load(SsdAhead &ahead, const TokenLayer &layer, u32 t) const {
        const u32 lane = t % 32, convolved = p.e + 2 * p.n, row = extra.from + t, head_shift = __ffs(p.e / p.heads) - 1;
        if (t < channels.count) ahead.conv.load(layer, channels.from + t, convolved, p.taps);
        if (t < channels.count) ahead.a = layer.a[channels.from + t >> head_shift], ahead.d = layer.d[channels.from + t >> head_shift];
        if (t < extra.count && row < 2 * p.n) ahead.conv_small.load(layer, p.e + row, convolved, p.taps);
        if (t < extra.count && row >= 2 * p.n) ahead.bias = layer.dt_bias[row - 2 * p.n];
#pragma unroll
        for (u32 i = 0; i < SsdAhead::EACH; i++) {
            const u32 c = t / 32 + i * RECURRING, channel = channels.from + c;
            if (c < channels.count)
                ahead.state[i] = reinterpret_cast<const float4 *>(layer.state + size_t(channel) * p.n)[lane];
        }
    }
    DEVICE void recur_ssd() {
        const u32 me = threadIdx.x - 32 * STREAMING, small_count = 2 * p.n + p.heads, head_shift = __ffs(p.e / p.heads) - 1;
        __shared__ float act[MOST_CHANNELS], core[MOST_CHANNELS], rate[MOST_CHANNELS], skip[MOST_CHANNELS];
        ask(0, me);
        float *small = floats(p.small_at), resid = embed(me);
        const u32 convolved = p.e + 2 * p.n;
        SsdAhead ahead;
        load(ahead, enter(0, me), me);
#pragma unroll 1
        for (u32 l = 0; l < p.count; l++) {
            const TokenLayer &layer = layer_of(l);
            const u32 t = thread() - 32 * STREAMING, warp = t / 32, lane = t % 32, row = extra.from + t, flag = flag0 + l + 1;
            meet<BOTH>(EXTRA);
            if (t < extra.count) {
                float x = together(extra_sums(), t, p.split), value;
                layer.projected[2 * p.e + row] = x;
                if (row < 2 * p.n) {
                    const float out = ahead.conv_small.run(layer, p.e + row, convolved, p.taps, x);
                    value = silu(out);
                    layer.convolved[p.e + row] = out, layer.activated[p.e + row] = value;
                } else {
                    value = fminf(fmaxf(softplus(x + ahead.bias), p.dt_low), p.dt_high);
                    layer.delta[row - 2 * p.n] = value;
                }
                publish(smalls() + row, value, flag);
            }
            meet<BOTH>(X);
            if (t < channels.count) {
                const u32 channel = channels.from + t;
                const float x = together(x_sums(), t, p.split), out = ahead.conv.run(layer, channel, convolved, p.taps, x), value = silu(out);
                layer.projected[p.e + channel] = x, layer.convolved[channel] = out, layer.activated[channel] = value;
                act[t] = value, rate[t] = ahead.a * LOG2_E, skip[t] = ahead.d * value;
            }
            gather_small(small, small_count, t, flag);
            meet<32 * RECURRING>(AMONG_RECURRING);
            const float4 b = reinterpret_cast<const float4 *>(small)[lane], query = reinterpret_cast<const float4 *>(small + p.n)[lane];
#pragma unroll
            for (u32 i = 0; i < SsdAhead::EACH; i++) {
                const u32 c = warp + i * RECURRING, channel = channels.from + c;
                if (c >= channels.count) break;
                const float delta = small[2 * p.n + (channel >> head_shift)], x = act[c], step = delta * x, decay = exp2_fast(delta * rate[c]);
                float4 s = ahead.state[i];
                s.x = decay * s.x + step * b.x, s.y = decay * s.y + step * b.y;
                s.z = decay * s.z + step * b.z, s.w = decay * s.w + step * b.w;
                reinterpret_cast<float4 *>(layer.state + size_t(channel) * p.n)[lane] = s;
                const float y = warp_sum(s.x * query.x + s.y * query.y + s.z * query.z + s.w * query.w) + skip[c];
                if (lane == 0) core[c] = y;
            }
            meet<BOTH>(Z);
            if (t < channels.count) {
                const u32 channel = channels.from + t;
                const float z = together(z_sums(), t, p.split), gated = core[t] * silu(z);
                publish(gateds() + channel, gated, flag);
                layer.projected[channel] = z, layer.core[channel] = core[t], layer.gated[channel] = gated;
            }
            arrive<BOTH>(GATED);
            // Not while numbers of other blocks are awaited, which would come behind these.
            meet<BOTH>(GATHERED);
            if (l + 1 < p.count) load(ahead, enter(l + 1, thread() - 32 * STREAMING), thread() - 32 * STREAMING);
            finish_layer(l, thread() - 32 * STREAMING, flag, resid);
        }
    }

    DEVICE void finish_layer(u32 l, u32 t, u32 flag, float &resid) const {
        meet<BOTH>(OUT);
        float out = 0.0f;
        if (t < rows.count) {
            out = together(out_sums(), t, p.split_out) * p.output_scale;
            resid += out * p.residual_scale;
            publish(residuals() + rows.from + t, resid, flag);
        }
        if (l + 1 < p.count || p.head) arrive<BOTH>(RESIDUAL);
        const TokenLayer &layer = layer_of(l);
        if (t < rows.count) layer.output[rows.from + t] = out, layer.resid[rows.from + t] = resid;
    }

    DEVICE void run() {
        const void **pointers = reinterpret_cast<const void **>(shared + p.pointers_at);
        for (u32 i = threadIdx.x; i < p.count; i += TOKEN_THREADS) {
            const TokenLayer &layer = p.layers[i];
            pointers[4 * i] = layer.in, pointers[4 * i + 1] = layer.out, pointers[4 * i + 2] = layer.norm, pointers[4 * i + 3] = layer.gated_norm;
        }
        if (threadIdx.x < 2 * STREAMING * p.slots) make_barrier(shared_address(shared) + 8 * threadIdx.x);
        show_barriers();
        __syncthreads();
        // At BEGUN nobody needs to wait: compute-sanitizer 2025.3 overlooks the first `arrive` of a warp, whichever it is, and would take what
        // the first rows' sums are passed on with for a race.
        if (threadIdx.x < 32 * STREAMING) {
            arrive<BOTH>(BEGUN);
            stream();
        } else if (threadIdx.x >= BOTH) {
            fetch();
        } else {
            meet<BOTH>(BEGUN);
            if (KIND == 1) recur_scan();
            else recur_ssd();
        }
        // All blocks have read it: each has had the others' last numbers.
        __syncthreads();
        if (blockIdx.x == 0 && threadIdx.x == 0) *p.epoch = flag0 + p.count + 1;
    }
};

#define TOKEN(kind, suffix, W, J)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(TOKEN_THREADS, 1) token##kind##_##J##_##suffix(const __grid_constant__ TokenParams p) {  \
        extern __shared__ __align__(128) unsigned char shared_bytes[];                                                               \
        Token<W, J, kind>(p, shared_bytes).run();                                                                                    \
    }
#define TOKENS(kind, suffix, W)                                                                                                      \
    TOKEN(kind, suffix, W, 1)                                                                                                        \
    TOKEN(kind, suffix, W, 3)                                                                                                        \
    TOKEN(kind, suffix, W, 4)
TOKENS(1, f32, float)
TOKENS(2, f32, float)
TOKENS(1, f16, __half)
TOKENS(2, f16, __half)
TOKEN(1, f16, __half, 5)
TOKEN(2, f16, __half, 5)
TOKENS(1, bf16, __nv_bfloat16)
TOKENS(2, bf16, __nv_bfloat16)
TOKEN(1, bf16, __nv_bfloat16, 5)
TOKEN(2, bf16, __nv_bfloat16, 5)
