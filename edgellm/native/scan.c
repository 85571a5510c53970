/* What a drawn token needs of a whole vocabulary, in one pass with nothing allocated: the largest logits, the mass of
 * the softmax, and the draw itself, also in one call with the decode before it. edgellm/native/scan.py says what each
 * function gives, and does the same with numpy where this file was not compiled.
 *
 * The long loops are written with the vector types of GCC and Clang, which become whatever instructions there are, with
 * sums in an order of their own: the same input gives the same bits on every processor of one kind.
 */

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Floats in a vector register: compilers take wider vectors apart, and comparisons down to single numbers. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK 64 /* entries whose maximum is remembered */
#define MOST_ROWS 1024

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef struct {
    int32_t id;
    float logit;
    float p;
} row_t; /* llama_token_data (llama.h) */

typedef struct {
    row_t *data;
    size_t size;
    int64_t selected;
    bool sorted;
} rows_t; /* llama_token_data_array (llama.h) */

typedef void (*apply_t)(void *sampler, rows_t *rows); /* llama_sampler_apply */

typedef struct {
    const float *logits;
    int64_t n_vocab;
    int64_t k;      /* as edgellm_top has it */
    int64_t kept;   /* rows of them that the samplers get; all that there are: INT64_MAX */
    double u;  /* as edgellm_draw has it */
    row_t *rows;
    float *scratch;
    apply_t apply;
    void **samplers;
    int64_t n_samplers;
    const bool *leaves_holes; /* of each: rows at -inf are taken out behind it */
    row_t *copies;        /* what was there at first, and behind each; NULL: nothing is copied, and the mass not summed */
    int64_t room;         /* rows that `copies` can take */
    int64_t *sizes;       /* how many those are: n_samplers + 1 */
    double sums[2];       /* as edgellm_mass has them */
    float maximum;
    float logit;          /* of the token that was drawn */
} draw_task;              /* _Task in native_draw.py */

typedef struct {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} batch_t; /* llama_batch (llama.h) */

typedef struct {
    int32_t (*decode)(void *context, batch_t batch);   /* llama_decode */
    float *(*logits_ith)(void *context, int32_t row);  /* llama_get_logits_ith */
    void *context;
    batch_t batch;
} step_task; /* _Task in lone_step.py */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#define LOAD(into, from) memcpy(&(into), (from), sizeof(into))
#define WHERE(mask, yes, no) ((floats)(((mask) & (ints)(yes)) | (~(mask) & (ints)(no))))

/* Fills `maxima`, one for each whole block of `logits`; gives the largest of all n, or NaN where one is NaN. */
static float block_maxima(const float *logits, int64_t n, float *maxima) {
    ints wrong = {0};
    float largest = -INFINITY;
    int64_t block = 0, has_nan = 0;
    for (; (block + 1) * BLOCK <= n; block++) {
        floats top, next;
        LOAD(top, logits + block * BLOCK);
        wrong |= top != top;
        for (int step = LANES; step < BLOCK; step += LANES) {
            LOAD(next, logits + block * BLOCK + step);
            wrong |= next != next;
            top = WHERE(next > top, next, top);
        }
        float most = top[0];
        for (int lane = 1; lane < LANES; lane++) most = top[lane] > most ? top[lane] : most;
        maxima[block] = most;
        largest = most > largest ? most : largest;
    }
    for (int lane = 0; lane < LANES; lane++) has_nan |= wrong[lane];
    for (int64_t i = block * BLOCK; i < n; i++) {
        has_nan |= logits[i] != logits[i];
        largest = logits[i] > largest ? logits[i] : largest;
    }
    return has_nan ? NAN : largest;
}

/* Sums, over n logits, of w = exp(logit - maximum) and of w * (logit - maximum).
 *
 * exp is within 2 units in the last place: 2^k times a polynomial (that of Cephes' expf). What lies 87 or more below the
 * maximum weighs less than 1e-37 and counts as 0; -inf is among it. */
static void mass(const float *logits, int64_t n, float maximum, double *total, double *product) {
    const floats magic = (floats){0} + 12582912.0f; /* 1.5 * 2^23: added, it rounds, and leaves an integer in the low bits */
    const floats lowest = (floats){0} - 87.0f;
    double totals = 0, products = 0;
    int64_t i = 0;
    while (i + LANES <= n) {
        /* Some thousand entries at a time in single precision, and those sums in double. */
        int64_t end = i + 4096 < n ? i + 4096 : n;
        floats sums = {0}, weighted = {0};
        for (; i + LANES <= end; i += LANES) {
            floats x;
            LOAD(x, logits + i);
            x -= maximum;
            ints counts = x > lowest;
            x = WHERE(counts, x, lowest);
            floats shifted = x * 1.44269504088896341f + magic;
            floats k = shifted - magic;
            floats r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
            floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
            p = p * r + 8.3334519073e-3f;
            p = p * r + 4.1665795894e-2f;
            p = p * r + 1.6666665459e-1f;
            p = p * r + 5.0000001201e-1f;
            p = p * r * r + r + 1.0f;
            floats w = (floats)(((ints)p + ((ints)shifted << 23)) & counts);
            sums += w;
            weighted += w * x;
        }
        for (int lane = 0; lane < LANES; lane++) {
            totals += sums[lane];
            products += weighted[lane];
        }
    }
    for (; i < n; i++) {
        double x = (double)logits[i] - maximum;
        if (x > -87.0) {
            totals += exp(x);
            products += exp(x) * x;
        }
    }
    *total = totals;
    *product = products;
}

/* The k-th largest of n values, 1 <= k <= n, with a heap of k; `heap` has room for k. */
static float kth_largest(const float *values, int64_t n, int64_t k, float *heap) {
    int64_t size = 0;
    for (int64_t i = 0; i < n; i++) {
        float value = values[i];
        int64_t at;
        if (size < k) {
            at = size++;
            while (at > 0 && heap[(at - 1) / 2] > value) {
                heap[at] = heap[(at - 1) / 2];
                at = (at - 1) / 2;
            }
        } else if (value > heap[0]) {
            at = 0;
            for (int64_t child = 1; child < k; child = 2 * at + 1) {
                if (child + 1 < k && heap[child + 1] < heap[child]) child++;
                if (heap[child] >= value) break;
                heap[at] = heap[child];
                at = child;
            }
        } else {
            continue;
        }
        heap[at] = value;
    }
    return heap[0];
}

EXPORT int32_t edgellm_scan_version(void) { return 5; } /* VERSION in scan.py */

/* Scratch for one caller at a time: blocks of the vocabulary, twice. */
EXPORT int64_t edgellm_scratch_floats(int64_t n) { return 2 * (n / BLOCK + 1); }

/* The k largest of n logits, and what equals or nearly equals them, in the order of ids: how many were written to
 * `rows`, or -1 where more than `room` (or k is too large a part of n). `maximum` is set in any case. */
EXPORT int64_t edgellm_top(const float *logits, int64_t n, int64_t k, row_t *rows, int64_t room, float *scratch,
                           float *maximum) {
    int64_t blocks = n / BLOCK;
    float *maxima = scratch, *heap = scratch + blocks + 1;
    *maximum = block_maxima(logits, n, maxima);
    if (!(fabsf(*maximum) < INFINITY) || k < 1 || 4 * k > blocks) return -1;
    /* k blocks have a maximum of at least this, so k entries have; what is above it can only be in such blocks. */
    float bound = kth_largest(maxima, blocks, k, heap);
    if (!(bound > -INFINITY)) return -1;
    int64_t count = 0;
    for (int64_t block = 0; block <= blocks; block++) {
        if (block < blocks && maxima[block] < bound) continue;
        int64_t end = block < blocks ? (block + 1) * BLOCK : n;
        for (int64_t i = block * BLOCK; i < end; i++)
            if (logits[i] >= bound) {
                if (count == room) return -1;
                rows[count].id = (int32_t)i;
                rows[count].logit = logits[i];
                rows[count].p = 0.0f;
                count++;
            }
    }
    return count;
}

/* See `mass`. */
EXPORT void edgellm_mass(const float *logits, int64_t n, float maximum, double *sums) {
    mass(logits, n, maximum, &sums[0], &sums[1]);
}

/* The largest logit of the rows, NaN where one is NaN, -inf where there are none. */
EXPORT float edgellm_highest(const row_t *rows, int64_t n) {
    float highest = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (rows[i].logit != rows[i].logit) return NAN;
        highest = rows[i].logit > highest ? rows[i].logit : highest;
    }
    return highest;
}

/* Softmax of the rows' logits into `out`, n floats. */
EXPORT void edgellm_probs(const row_t *rows, int64_t n, float *out) {
    float largest = edgellm_highest(rows, n);
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        double weight = exp((double)rows[i].logit - largest);
        out[i] = (float)weight;
        total += weight;
    }
    for (int64_t i = 0; i < n; i++) out[i] = (float)(out[i] / total);
}

/* Takes the rows at -inf (and NaN) out, in place and in order: how many are left. */
EXPORT int64_t edgellm_close_holes(row_t *rows, int64_t n) {
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++)
        if (rows[i].logit > -INFINITY) {
            if (left != i) rows[left] = rows[i];
            left++;
        }
    return left;
}

static int by_logit_then_id(const void *one, const void *other) {
    const row_t *a = one, *b = other;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Puts rows into descending order of logit, equal ones into ascending order of id, and keeps the first k: how many. */
EXPORT int64_t edgellm_cut(row_t *rows, int64_t n, int64_t k) {
    qsort(rows, (size_t)n, sizeof(row_t), by_logit_then_id);
    return k < n ? k : n;
}

/* The token that `u` in [0, 1) draws from the softmax of the rows, laid out by descending logit, equal ones by
 * ascending id; -1 where there are none, too many for the stack, or the largest logit is not finite. The rows stay as
 * they are. */
EXPORT int32_t edgellm_draw(const row_t *rows, int64_t n, double u) {
    if (n < 1 || n > MOST_ROWS) return -1;
    row_t sorted[MOST_ROWS];
    double cumulated[MOST_ROWS];
    const row_t *in_order = rows;
    for (int64_t i = 1; i < n; i++)
        if (by_logit_then_id(&rows[i - 1], &rows[i]) > 0) {
            memcpy(sorted, rows, (size_t)n * sizeof(row_t));
            qsort(sorted, (size_t)n, sizeof(row_t), by_logit_then_id);
            in_order = sorted;
            break;
        }
    if (!(fabsf(in_order[0].logit) < INFINITY)) return -1;
    double total = 0, largest = in_order[0].logit;
    for (int64_t i = 0; i < n; i++) cumulated[i] = total += exp(in_order[i].logit - largest);
    double target = u * total;
    for (int64_t i = 0; i < n; i++)
        if (cumulated[i] > target) return in_order[i].id;
    /* u * total may round up to the total itself; the last row with any weight takes it. */
    int64_t last = n - 1;
    while (last > 0 && cumulated[last - 1] == total) last--;
    return in_order[last].id;
}

static bool copy_rows(draw_task *task, int64_t point, const rows_t *rows, int64_t *used) {
    int64_t size = (int64_t)rows->size;
    if (*used + size > task->room) return false;
    memcpy(task->copies + *used, rows->data, (size_t)size * sizeof(row_t));
    task->sizes[point] = size;
    *used += size;
    return true;
}

/* A whole draw: the top of the vocabulary, llama.cpp's samplers, and the token. -1 where it has to be done step by step:
 * logits that are not finite, more rows than fit, a sampler that left none. */
EXPORT int32_t edgellm_sample(draw_task *task) {
    int64_t used = 0;
    int64_t count = edgellm_top(task->logits, task->n_vocab, task->k, task->rows, MOST_ROWS, task->scratch, &task->maximum);
    if (count < 1) return -1;
    rows_t rows = {task->rows, (size_t)count, -1, false};
    if (task->copies != NULL) {
        mass(task->logits, task->n_vocab, task->maximum, &task->sums[0], &task->sums[1]);
        if (!copy_rows(task, 0, &rows, &used)) return -1;
    }
    /* Among equal logits at the edge of top_k those of the smallest ids stay, however many more rows were looked at. */
    rows.size = (size_t)edgellm_cut(rows.data, count, task->kept);
    rows.sorted = true;
    for (int64_t i = 0; i < task->n_samplers; i++) {
        task->apply(task->samplers[i], &rows);
        if (task->leaves_holes[i])
            rows.size = (size_t)edgellm_close_holes(rows.data, (int64_t)rows.size);
        if (rows.size < 1) return -1;
        if (task->copies != NULL && !copy_rows(task, i + 1, &rows, &used)) return -1;
    }
    int32_t token = edgellm_draw(rows.data, (int64_t)rows.size, task->u);
    if (token >= 0) task->logit = task->logits[token];
    return token;
}

/* Decodes one token and draws the next: between the two nothing but this runs. -1 as edgellm_sample has it; -2 where it
 * was not decoded. */
EXPORT int32_t edgellm_step(step_task *step, draw_task *draw, int32_t token, int32_t position, int32_t sequence) {
    batch_t *batch = &step->batch;
    batch->n_tokens = 1;
    batch->token[0] = token;
    batch->pos[0] = position;
    batch->n_seq_id[0] = 1;
    batch->seq_id[0][0] = sequence;
    batch->logits[0] = 1;
    if (step->decode(step->context, *batch) != 0) return -2;
    draw->logits = step->logits_ith(step->context, 0);
    return draw->logits != NULL ? edgellm_sample(draw) : -1;
}
