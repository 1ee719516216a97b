// Selective scan over any length. What bounds it is the exponential of every state element (16 a clock and multiprocessor), so each is
// computed once: no token is walked twice. A block has three teams of four warps, one of each team to a scheduler, and a ring of tiles in
// shared memory between them:
//
//   prepare   Δ, x, B, C ─▶ softplus(Δ + bias), Δ x; B and C as f32
//   walk      h ← exp(Δ a) h + Δ x B and each lane's share of C h, four tokens at a time, exponentials among the products of earlier
//             tokens; a channel has LANES lanes of S states each, and nothing is summed over lanes here
//   finish    the lanes' shares ─▶ C h + D x, gate ─▶ y
//
// The text is cut in tiles, and the tiles of all channels are dealt out evenly: where channels are too many for one round, a
// multiprocessor takes the last tiles of some after another has walked the first (`Piece`).
#include "selective_scan.cuh"

template <typename T, int LANES, int S, int TILE, bool VEC, bool NORM> struct Scan {
    static constexpr int N = LANES * S, CHANNELS = TEAM / LANES, PAIRS = CHANNELS / 2, TOKENS = TILE * PAIRS / TEAM, FOURS = TILE / 4;
    static constexpr int KEYS = TILE * 2 * N / 8, KEY_ROUNDS = (KEYS + TEAM - 1) / TEAM, KEY_ROWS = TEAM / (N / 4);  // eights of B and C
    static_assert(TOKENS == 1 || TOKENS == 2 || TOKENS == 4, "");
    struct __align__(4 * TOKENS) Some {  // tokens of one channel
        float of[TOKENS];
    };
    typedef typename PairOf<T>::type Two;

    // A channel's place: even channels first, so that a pair of them lies a half apart and neighbouring pairs side by side.
    DEVICE static u32 channel_of(u32 place) { return place % PAIRS * 2 + place / PAIRS; }
    // Shares of four tokens lie so that neither the lanes that store them nor those that sum them meet in a bank.
    DEVICE static u32 share_at(u32 four, u32 place, u32 lane) {
        return (four * (CHANNELS / 4) + place / 4) * (LANES * 4) + ((lane * 4 + place % 4) ^ (place / 4 % 2 * 4));
    }

    struct Stage {
        float4 deltas[FOURS][CHANNELS], writes[FOURS][CHANNELS];  // Δ and Δ x of four tokens
        // B and C, S of each a lane; padded so that rows stored together begin in different banks.
        float keys[TILE][LANES * 2 * S + 8];
        float4 shares[TILE * CHANNELS * LANES / 4];               // C h of each lane
        float4 squares[NORM ? TILE * CHANNELS * LANES / 4 : 1];
    };
    struct Shared {
        Stage stages[STAGES];
        u64 barriers[BARRIERS];  // of each stage: it is prepared; walked; finished
    };

    // Some tiles of `count` channels from `first` on: a part of a task, which is a block of channels of a group.
    struct Piece {
        u32 first, count, begin, end;
        u32 task, group, block, per_group;  // block of how many channels
    };
    const ScanParams &p;
    u32 blocks_a_group, tiles, low, high;

    DEVICE Scan(const ScanParams &p) : p(p) {
        const u32 per_group = p.channels / p.groups;
        blocks_a_group = (per_group + CHANNELS - 1) / CHANNELS;
        tiles = (p.tokens + TILE - 1) / TILE;
        // Later blocks first: what one waits for is walked by a block that was started before it.
        low = (gridDim.x - 1 - blockIdx.x) * p.share;
        high = min(low + p.share, blocks_a_group * p.groups * tiles);
        if (low > high) low = high;
    }
    // Stretches [low, high) are laid over all tasks in a row. The part of a task in one stretch's end is its last tiles, that in the next
    // stretch's beginning its first: the latter are walked at once, the former when they are long done.
    DEVICE void complete(Piece &out) const {
        out.first = out.group * out.per_group + out.block * CHANNELS, out.count = min(u32(CHANNELS), out.per_group - out.block * CHANNELS);
        out.begin = (out.task + 1) * tiles - min(high, (out.task + 1) * tiles);
        out.end = (out.task + 1) * tiles - max(low, out.task * tiles);
    }
    DEVICE Piece piece_of(u32 task) const {
        Piece piece;
        piece.task = task, piece.group = task / blocks_a_group, piece.block = task % blocks_a_group, piece.per_group = p.channels / p.groups;
        complete(piece);
        return piece;
    }
    // Without a division: it lies within the teams' loops.
    DEVICE bool next_piece(Piece &piece) const {
        if (++piece.task * tiles >= high) return false;
        if (++piece.block == blocks_a_group) piece.block = 0, piece.group++;
        complete(piece);
        return true;
    }

    DEVICE void walk(Shared &shared) const {
        Stage *const stages = shared.stages;
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        // Lanes that differ in bit 0 read the same steps, those that differ in bit 1 the same B and C: such loads take half the time.
        constexpr u32 OF_WARP = 32 / LANES;
        const u32 own = (lane >> 1) % OF_WARP, part = (lane & 1) | (lane >> 1) / OF_WARP << 1;
        const u32 place = warp * OF_WARP + own;
        const u32 barriers = shared_address(shared.barriers);
        u32 stage = 0, parity = 0;
        for (u32 task = low / tiles; task * tiles < high; task++) {
            const Piece piece = piece_of(task);
            const bool here = channel_of(place) < piece.count;
            const size_t at = size_t(piece.first + (here ? channel_of(place) : 0)) * p.n;
            float a[S], h[S];
#pragma unroll
            for (int i = 0; i < S; i++) a[i] = part * S + i < p.n ? p.a[at + part * S + i] * LOG2_E : 0.0f;
            u32 *const flag = handed + piece.task * 4 + warp;
            if (piece.begin) {
                if (lane == 0) {
                    u32 seen;
                    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
                    while (!seen);
                    *flag = 0;
                }
                __syncwarp();
            }
#pragma unroll
            for (int i = 0; i < S; i++) h[i] = part * S + i < p.n ? __ldcg(p.state + at + part * S + i) : 0.0f;

            const Stage *now = &stages[stage];
            float4 delta, current = {}, write[2];
            float decay[2][4][S], keys[2][4][2 * S];
            auto fetch_delta = [&](const Stage *from, u32 four) { delta = from->deltas[four][place]; };
            auto fetch = [&](int to, const Stage *from, u32 four) {
                write[to] = from->writes[four][place];
#pragma unroll
                for (int t = 0; t < 4; t++)
#pragma unroll
                    for (int i = 0; i < 2 * S; i += S == 2 ? 4 : (S < 4 ? 2 * S : 4))
                        *reinterpret_cast<float4 *>(&keys[to][t][i]) =
                            *reinterpret_cast<const float4 *>(&from->keys[four * 4 + t][part * (2 * S) + i]);
            };
            // Four tokens, with the exponentials of the four that begin two later: where a tile ends, nvcc puts those of the next one together,
            // and there should be few. `next_delta` and `next` are where those numbers come from that are needed in the round after next and
            // the next.
            auto round = [&](int parity, u32 four, const Stage *next, u32 next_four, const Stage *next_delta, u32 next_delta_four) {
                const float step[4] = {current.z, current.w, delta.x, delta.y};
                current = delta;
                fetch(parity ^ 1, next, next_four);
                fetch_delta(next_delta, next_delta_four);
                const float in[4] = {write[parity].x, write[parity].y, write[parity].z, write[parity].w};
                float y[4], square[4];
#pragma unroll
                for (int t = 0; t < 4; t++) {
#pragma unroll
                    for (int i = 0; i < S; i++) {
                        decay[t < 2 ? parity : parity ^ 1][(t + 2) % 4][i] = exp2_fast(step[t] * a[i]);
                        h[i] = fmaf(decay[parity][t][i], h[i], in[t] * keys[parity][t][i]);
                        y[t] = i ? fmaf(keys[parity][t][S + i], h[i], y[t]) : keys[parity][t][S] * h[0];
                        if (NORM) square[t] = i ? fmaf(h[i], h[i], square[t]) : h[0] * h[0];
                    }
                }
                Stage &out = *const_cast<Stage *>(now);
                out.shares[share_at(four, place, part)] = make_float4(y[0], y[1], y[2], y[3]);
                if constexpr (NORM) out.squares[share_at(four, place, part)] = make_float4(square[0], square[1], square[2], square[3]);
            };
            wait_at(barriers + (THERE + stage) * 8, parity);
            fetch_delta(now, 0), current = delta;
#pragma unroll
            for (int i = 0; i < S; i++) decay[0][0][i] = exp2_fast(current.x * a[i]), decay[0][1][i] = exp2_fast(current.y * a[i]);
            fetch_delta(now, 1);
            fetch(0, now, 0);
            for (u32 tile = piece.begin; tile < piece.end; tile++) {
                // The next tile is waited for early, so that nothing stands between this one's rounds.
                const bool last = tile + 1 == piece.end;
                const u32 next_stage = stage + 1 == STAGES ? 0 : stage + 1, next_parity = next_stage ? parity : parity ^ 1;
                if (!last) wait_at(barriers + (THERE + next_stage) * 8, next_parity);
                // After the last tile numbers are fetched that nothing uses.
                const Stage *next = last ? now : &stages[next_stage];
#pragma unroll
                for (u32 four = 0; four < FOURS - 2; four += 2) {
                    round(0, four, now, four + 1, now, four + 2);
                    round(1, four + 1, now, four + 2, now, four + 3);
                }
                round(0, FOURS - 2, now, FOURS - 1, next, 0);
                round(1, FOURS - 1, next, 0, next, 1);
                arrive_at(barriers + (DONE + stage) * 8);
                stage = next_stage, parity = next_parity, now = next;
            }
            if (here)
#pragma unroll
                for (int i = 0; i < S; i++)
                    if (part * S + i < p.n) __stcg(p.state + at + part * S + i, h[i]);
            if (piece.end < tiles) {
                __threadfence();
                __syncwarp();
                if (lane == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1) : "memory");
            }
        }
    }

    // Where one of those who serve is among the block's tiles.
    struct Cursor {
        Piece piece;
        u32 tile;
        DEVICE void start(const Scan &scan) { piece = scan.piece_of(scan.low / scan.tiles), tile = piece.begin; }
        DEVICE u32 token() const { return tile * TILE; }
        // Whether another piece begins.
        DEVICE bool next(const Scan &scan) {
            if (++tile < piece.end) return false;
            if (!scan.next_piece(piece)) return false;
            tile = piece.begin;
            return true;
        }
    };

    // Numbers of this thread's pair of channels to TOKENS rows of [T, stride] from `to` on, of which `left` are in the text.
    template <typename U> DEVICE static void put(U *to, size_t stride, u32 left, u32 channels, const float (&values)[2][TOKENS]) {
        typedef typename PairOf<U>::type Pair;
#pragma unroll
        for (int i = 0; i < TOKENS; i++, to += stride)
            if (i < left) {
                if constexpr (VEC) {
                    if (channels) *reinterpret_cast<Pair *>(to) = PairOf<U>::from(values[0][i], values[1][i]);
                } else {
                    if (channels > 0) to[0] = from_float<U>(values[0][i]);
                    if (channels > 1) to[1] = from_float<U>(values[1][i]);
                }
            }
    }

    // What a thread prepares or finishes: channels 2·pair and 2·pair + 1 of TOKENS tokens from `row` on.
    struct Place {
        u32 thread, pair, row;
        DEVICE Place() : thread(threadIdx.x % TEAM), pair(thread % PAIRS), row(thread / PAIRS * TOKENS) {}
        // How many of the pair's channels there are.
        DEVICE u32 channels(const Piece &piece) const { return pair * 2 < piece.count ? piece.count - pair * 2 : 0; }
        // How many tokens of the text from its first on.
        DEVICE u32 left(const ScanParams &p, u32 token) const { return max(token + row, p.tokens) - (token + row); }
        DEVICE void of_channels(float (&to)[2], const float *from, const Piece &piece) const {
#pragma unroll
            for (int c = 0; c < 2; c++) to[c] = from && pair * 2 + c < piece.count ? from[piece.first + pair * 2 + c] : 0.0f;
        }
        DEVICE size_t at(const Piece &piece, u32 token, u32 stride) const {
            return size_t(token + row) * stride + piece.first + pair * 2;
        }
    };

    // One [T, stride] input, on its way from memory a tile ahead. What lies beyond the text and the channels is zero.
    struct Ahead {
        const T *from;
        Two pairs[TOKENS];
        DEVICE void begin(const Place &place, const Piece &piece, const void *rows, u32 stride) {
            from = static_cast<const T *>(rows) + place.at(piece, piece.begin * TILE, stride);
        }
        DEVICE void load(u32 left, u32 channels, u32 stride) {
            const T zero = from_float<T>(0.0f);
            const T *at = from;
#pragma unroll
            for (int i = 0; i < TOKENS; i++, at += stride) {
                const bool real = i < left && channels;
                if constexpr (VEC) {
                    pairs[i] = PairOf<T>::from(0.0f, 0.0f);
                    if (real) pairs[i] = *reinterpret_cast<const Two *>(at);
                } else
                    pairs[i].x = real ? at[0] : zero, pairs[i].y = real && channels > 1 ? at[1] : zero;
            }
            from += size_t(TILE) * stride;
        }
    };

    // The same of B and C: eight numbers a thread each time.
    struct KeysAhead {
        u32 row, n, half;
        const T *of, *from;
        Two pairs[KEY_ROUNDS][4];
        DEVICE KeysAhead(const Place &place, const ScanParams &p) {
            row = place.thread / (N / 4), n = place.thread % (N / 4) * 8 % N, half = place.thread % (N / 4) * 8 < N ? 0 : S;
            of = static_cast<const T *>(half ? p.c : p.b);
        }
        DEVICE void begin(const ScanParams &p, const Piece &piece) {
            from = of + (piece.begin * TILE + size_t(row)) * p.bc_stride + piece.group * p.n + n;
        }
        DEVICE void load(const ScanParams &p, u32 token) {
            const T zero = from_float<T>(0.0f);
#pragma unroll
            for (int k = 0; k < KEY_ROUNDS; k++) {
                const bool real = token + row + k * KEY_ROWS < p.tokens && (KEY_ROUNDS * TEAM == KEYS || row + k * KEY_ROWS < TILE);
                const T *const at = from + size_t(k * KEY_ROWS) * p.bc_stride;
                if constexpr (VEC) {
                    constexpr int WORDS = sizeof(T) / 2;
                    uint4 words[WORDS] = {};
                    if (real)
#pragma unroll
                        for (int i = 0; i < WORDS; i++) words[i] = reinterpret_cast<const uint4 *>(at)[i];
#pragma unroll
                    for (int i = 0; i < 4; i++) pairs[k][i] = reinterpret_cast<const Two *>(words)[i];
                } else
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        pairs[k][i].x = real && n + 2 * i < p.n ? at[2 * i] : zero;
                        pairs[k][i].y = real && n + 2 * i + 1 < p.n ? at[2 * i + 1] : zero;
                    }
            }
            from += size_t(TILE) * p.bc_stride;
        }
        DEVICE void store(Stage &stage) const {
#pragma unroll
            for (int k = 0; k < KEY_ROUNDS; k++) {
                const u32 r = row + k * KEY_ROWS;
                if (KEY_ROUNDS * TEAM != KEYS && r >= TILE) continue;
                float2 twos[4];
#pragma unroll
                for (int i = 0; i < 4; i++) twos[i] = widen(pairs[k][i]);
                float *const to = &stage.keys[r][n / S * (2 * S) + half];
                if constexpr (S == 2)
#pragma unroll
                    for (int i = 0; i < 4; i++) *reinterpret_cast<float2 *>(to + i * 4) = twos[i];
                else
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        *reinterpret_cast<float4 *>(&stage.keys[r][(n + 4 * i) / S * (2 * S) + half + (n + 4 * i) % S]) =
                            make_float4(twos[2 * i].x, twos[2 * i].y, twos[2 * i + 1].x, twos[2 * i + 1].y);
            }
        }
    };

    DEVICE void prepare(Shared &shared) const {
        const Place place;
        Ahead delta, x;
        KeysAhead keys(place, p);
        float bias[2];
        Cursor ahead, now;
        ahead.start(*this), now = ahead;
        auto begin = [&](const Piece &piece) {
            delta.begin(place, piece, p.delta, p.delta_stride), x.begin(place, piece, p.x, p.x_stride), keys.begin(p, piece);
        };
        auto load = [&] {
            const u32 left = place.left(p, ahead.token()), channels = place.channels(ahead.piece);
            delta.load(left, channels, p.delta_stride), x.load(left, channels, p.x_stride), keys.load(p, ahead.token());
            if (ahead.next(*this)) begin(ahead.piece);
        };
        begin(ahead.piece), place.of_channels(bias, p.delta_bias, now.piece);
        load();
        const u32 count = high - low;
        Ring ring(shared.barriers);
        for (u32 done = 0; done < count; done++) {
            const u32 left = place.left(p, now.token()), four = place.row / 4;
            float deltas[2][TOKENS], writes[2][TOKENS];
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                const float2 dt = widen(delta.pairs[i]), in = widen(x.pairs[i]);
                deltas[0][i] = dt.x + bias[0], deltas[1][i] = dt.y + bias[1];
                writes[0][i] = in.x, writes[1][i] = in.y;
            }
            // The next tile's numbers are on their way while this one is made.
            const KeysAhead these = keys;
            if (done + 1 < count) load();
            if (p.softplus)
#pragma unroll
                for (int i = 0; i < TOKENS; i++) deltas[0][i] = quick_softplus(deltas[0][i]), deltas[1][i] = quick_softplus(deltas[1][i]);
            if (left < TOKENS)  // beyond the end the state stays
#pragma unroll
                for (int i = 0; i < TOKENS; i++)
                    if (i >= left) deltas[0][i] = deltas[1][i] = 0.0f;
            if (done >= STAGES) wait_at(ring.at(FREE), ring.parity ^ 1);
            Stage &stage = shared.stages[ring.slot];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const u32 at = place.pair + c * PAIRS;
                Some step, write;
#pragma unroll
                for (int i = 0; i < TOKENS; i++) step.of[i] = deltas[c][i], write.of[i] = deltas[c][i] * writes[c][i];
                reinterpret_cast<Some *>(&stage.deltas[four][at])[place.row / TOKENS % (4 / TOKENS)] = step;
                reinterpret_cast<Some *>(&stage.writes[four][at])[place.row / TOKENS % (4 / TOKENS)] = write;
            }
            these.store(stage);
            arrive_at(ring.at(THERE)), ring.next();
            if (p.delta_out) put<float>(p.delta_out + place.at(now.piece, now.token(), p.channels), p.channels, left, place.channels(now.piece), deltas);
            if (now.next(*this)) place.of_channels(bias, p.delta_bias, now.piece);
        }
    }

    // To `out` times `scale`, the shares of all lanes. As `share_at`, written so that all addresses are constants from two.
    DEVICE static void sum(const Place &place, u32 four, const float4 *shares, float (&out)[2][TOKENS], const float (&scale)[2]) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const u32 at = place.pair + c * PAIRS, flip = (PAIRS % 8 ? at : place.pair) / 4 % 2;
            const float4 *const base = shares + (four * (CHANNELS / 4) + at / 4) * (LANES * 4) + place.pair % 4;
            const float4 *const ways[2] = {base + flip * 4, base + (flip ^ 1) * 4};
#pragma unroll
            for (int l = 0; l < LANES; l++) {
                const Some some = reinterpret_cast<const Some *>(ways[l % 2] + l / 2 * 8)[place.row / TOKENS % (4 / TOKENS)];
#pragma unroll
                for (int i = 0; i < TOKENS; i++) out[c][i] = l ? out[c][i] + some.of[i] : fmaf(scale[c], out[c][i], some.of[i]);
            }
        }
    }

    DEVICE void finish(Shared &shared) const {
        const Place place;
        Ahead x, z;
        float skip[2];
        T *to;
        u32 channels;
        Cursor ahead, now;
        ahead.start(*this), now = ahead;
        auto begin_ahead = [&](const Piece &piece) {
            x.begin(place, piece, p.x, p.x_stride), z.begin(place, piece, p.gate, p.gate_stride);
        };
        auto load = [&] {
            const u32 left = place.left(p, ahead.token()), channels = place.channels(ahead.piece);
            x.load(left, channels, p.x_stride);
            if (p.gate) z.load(left, channels, p.gate_stride);
            if (ahead.next(*this)) begin_ahead(ahead.piece);
        };
        auto begin = [&](const Piece &piece) {
            place.of_channels(skip, p.d, piece);
            to = static_cast<T *>(p.y) + place.at(piece, piece.begin * TILE, p.y_stride), channels = place.channels(piece);
        };
        begin_ahead(ahead.piece), begin(now.piece);
        load();
        const ptrdiff_t core_from_y = static_cast<T *>(p.core) - static_cast<T *>(p.y);
        const u32 count = high - low;
        Ring ring(shared.barriers);
        for (u32 done = 0; done < count; done++) {
            const u32 left = place.left(p, now.token()), four = place.row / 4;
            float out[2][TOKENS], gate[2][TOKENS];
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                const float2 in = widen(x.pairs[i]);
                out[0][i] = in.x, out[1][i] = in.y;
            }
            if (p.gate)
#pragma unroll
                for (int i = 0; i < TOKENS; i++) {
                    const float2 by = widen(z.pairs[i]);
                    gate[0][i] = quick_silu(by.x), gate[1][i] = quick_silu(by.y);
                }
            if (done + 1 < count) load();
            wait_at(ring.at(DONE), ring.parity);
            const Stage &stage = shared.stages[ring.slot];
            sum(place, four, stage.shares, out, skip);
            float squares[2][TOKENS] = {};
            const float none[2] = {};
            if (NORM) sum(place, four, stage.squares, squares, none);
            if (done + STAGES < count) arrive_at(ring.at(FREE));
            ring.next();
            if (p.core) put<T>(to + core_from_y, p.y_stride, left, channels, out);
            if (p.gate)
#pragma unroll
                for (int i = 0; i < TOKENS; i++) out[0][i] *= gate[0][i], out[1][i] *= gate[1][i];
            // Most tiles are whole, and then nothing has to be asked of a token.
            if (left >= TOKENS)
                put<T>(to, p.y_stride, TOKENS, channels, out);
            else
                put<T>(to, p.y_stride, left, channels, out);
            to += size_t(TILE) * p.y_stride;
            if (NORM && p.state_norm) {
#pragma unroll
                for (int i = 0; i < TOKENS; i++) squares[0][i] = sqrtf(squares[0][i]), squares[1][i] = sqrtf(squares[1][i]);
                put<float>(p.state_norm + place.at(now.piece, now.token(), p.channels), p.channels, left, channels, squares);
            }
            if (now.next(*this)) begin(now.piece);
        }
    }
};

template <typename T, int LANES, int S, int TILE, bool VEC, bool NORM> DEVICE void scan(const ScanParams &p) {
    typedef Scan<T, LANES, S, TILE, VEC, NORM> Of;
    extern __shared__ __align__(128) unsigned char bytes[];
    typename Of::Shared &shared = *reinterpret_cast<typename Of::Shared *>(bytes);
    const Of of(p);
    let_next_start();
    wait_for_previous();
    if (of.low == of.high) return;
    if (threadIdx.x < BARRIERS) begin_barrier(shared_address(&shared.barriers[threadIdx.x]), TEAM);
    __syncthreads();
    if (threadIdx.x < TEAM)
        of.walk(shared);
    else if (threadIdx.x < 2 * TEAM)
        of.prepare(shared);
    else
        of.finish(shared);
}

#define SCAN(name, T, LANES, S, TILE, VEC, NORM)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const __grid_constant__ ScanParams p) {                            \
        scan<T, LANES, S, TILE, VEC, NORM>(p);                                                                                       \
    }
#define SCANS(suffix, T)                                                                                                             \
    SCAN(scan_wide_##suffix, T, 4, 4, 32, true, false)                                                                               \
    SCAN(scan_wide_norm_##suffix, T, 4, 4, 16, true, true)                                                                           \
    SCAN(scan_narrow_##suffix, T, 8, 2, 32, true, false)                                                                             \
    SCAN(scan_narrow_norm_##suffix, T, 8, 2, 32, true, true)                                                                         \
    SCAN(scan_any_n8_##suffix, T, 4, 2, 16, false, true)                                                                             \
    SCAN(scan_any_n16_##suffix, T, 4, 4, 16, false, true)                                                                            \
    SCAN(scan_any_n64_##suffix, T, 8, 8, 16, false, true)
SCANS(f32, float)
SCANS(bf16, __nv_bfloat16)
SCANS(f16, __half)
