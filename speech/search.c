/* The inner loop of the CTC prefix beam search of speech/beam.py, compiled to WebAssembly, which wasmtime runs on every
 * platform without a compiler and within the bounds of a memory of its own. After a change:
 *
 *   python -m ziglang cc -target wasm32-freestanding -mcpu=generic+bulk_memory -O3 -nostdlib -s -Wl,--no-entry \
 *       -o speech/search.wasm speech/search.c
 *
 * speech/search.py fills the tables and calls `search`. All masses are linear probabilities.
 */

#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define PAGE 65536
#define TINY 1e-130 /* no factor of a word's end is less */
#define NODES 4096  /* the tree grows by so many */
#define ASKED 16384  /* answers of the language model that are remembered */
#define BUCKETS 1024 /* of scores, from the best one downwards: 64 for each halving */
enum { BEGINNING = 0, UNKNOWN = 2, NOT_YET = -1, NONE = -1, ROOT = 1, MAX_TABLES = 8 };

/* A beginning of the text: its parent and one more label, heard best in step `place`. */
typedef struct {
    double peak;                       /* the label's probability in that step */
    int32_t parent, label, place, slot; /* slot: where in the beam it is, only within a step */
} Node;

/* The last words that a probability may depend on, folded as the language model's contexts are. */
typedef struct {
    uint64_t folded;
    int32_t length, unused;
} Words;

/* A node that is kept. Of the paths that lead to it, `blank` is the mass of those that end in the blank. */
typedef struct {
    double blank, label;
    double end;  /* the factor of the end of its unfinished word, NOT_YET worked out */
    Words words, after; /* before and behind that word */
    int32_t node, last, letters, hot;
} Prefix;

/* Masses of a prefix before a step. */
typedef struct {
    double blank, total;
} Masses;

typedef struct {
    double score;
    int32_t prefix, tried; /* number of the label that follows, or NONE: nothing new */
} Candidate;

typedef struct {
    uint32_t n_contexts;
    const uint64_t *contexts;
    const uint32_t *starts, *tokens;
    const uint16_t *costs, *backoffs;
} Table;

typedef struct {
    const int32_t *next;
    const float *weight;
} Letters;

static struct {
    int32_t width, recombine, space, n_labels;
    double beam_floor;
} options;

static Letters plain, hot; /* hot.next is 0 if there are no hot words */
static const int32_t *token;
static const double *rest; /* factor of a word that ends in this state, but for its token's */

static Table tables[MAX_TABLES];
static int32_t n_tables;
static const uint16_t *unigrams; /* 0: no language model */
static uint64_t n_tokens;
static const double *coarse, *fine; /* factor of a cost: coarse[cost / 256] * fine[cost % 256] */

/* ---- memory: what is reserved stays until it is released */

extern unsigned char __heap_base;
static uintptr_t top;

EXPORT(reserve) void *reserve(uint32_t size) {
    if (!top) top = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
    uintptr_t start = top, end = start + ((size + 15) & ~15u), now = __builtin_wasm_memory_size(0) * PAGE;
    if (end > now && __builtin_wasm_memory_grow(0, (end - now + PAGE - 1) / PAGE) == (uintptr_t)-1) __builtin_trap();
    top = end;
    return (void *)start;
}

EXPORT(release) void release(void *start) { top = (uintptr_t)start; }

/* ---- tables */

EXPORT(set_options) void set_options(int32_t width, int32_t recombine, int32_t space, int32_t n_labels, double beam_floor) {
    options.width = width, options.recombine = recombine, options.space = space, options.n_labels = n_labels;
    options.beam_floor = beam_floor;
}

EXPORT(set_letters) void set_letters(const int32_t *next, const float *weight, const int32_t *tokens, const double *ends) {
    plain.next = next, plain.weight = weight, token = tokens, rest = ends;
}

EXPORT(set_hot) void set_hot(const int32_t *next, const float *weight) { hot.next = next, hot.weight = weight; }

EXPORT(set_unigrams) void set_unigrams(const uint16_t *costs, uint32_t n, const double *high, const double *low) {
    unigrams = costs, n_tokens = n, coarse = high, fine = low;
}

EXPORT(add_table) void add_table(uint32_t n_contexts, const uint64_t *contexts, const uint32_t *starts,
                                 const uint32_t *tokens, const uint16_t *costs, const uint16_t *backoffs) {
    if (n_tables == MAX_TABLES) __builtin_trap();
    tables[n_tables++] = (Table){n_contexts, contexts, starts, tokens, costs, backoffs};
}

/* ---- language: as speech.language_model.LanguageModel.follow */

static Words shortened(Words words, int32_t length) {
    uint64_t span = 1;
    if (words.length <= length) return words;
    for (int32_t i = 0; i < length; i++) span *= n_tokens;
    return (Words){words.folded % span, length, 0};
}

static int32_t find_context(Words words) {
    const Table *table = &tables[words.length - 1];
    uint32_t low = 0, high = table->n_contexts;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (table->contexts[middle] < words.folded) low = middle + 1;
        else high = middle;
    }
    return low < table->n_contexts && table->contexts[low] == words.folded ? (int32_t)low : NONE;
}

static uint32_t cost_of(Words words, uint32_t next) {
    uint32_t cost = 0;
    for (int32_t order = words.length < n_tables ? words.length : n_tables; order > 0; order--) {
        const Table *table = &tables[order - 1];
        int32_t group = find_context(shortened(words, order));
        if (group == NONE) continue;
        uint32_t low = table->starts[group], stop = table->starts[group + 1], high = stop;
        while (low < high) {
            uint32_t middle = (low + high) / 2;
            if (table->tokens[middle] < next) low = middle + 1;
            else high = middle;
        }
        if (low < stop && table->tokens[low] == next) return cost + table->costs[low];
        cost += table->backoffs[group];
    }
    return cost + unigrams[next];
}

static Words follow(Words words, uint32_t next) {
    int32_t length = n_tables > 1 ? n_tables : 1;
    words = shortened(words, length - 1);
    words = (Words){words.folded * n_tokens + next, words.length + 1, 0};
    while (words.length > 1 && find_context(words) == NONE) words = shortened(words, words.length - 1);
    return words;
}

/* What was asked of the language model and is likely to be asked again: overwritten by whatever falls on its place. */
static struct {
    Words words, after;
    uint32_t next, cost;
} asked[ASKED];

static uint32_t ask(Words words, uint32_t next, Words *after) {
    uint64_t key = (words.folded * 31 + words.length) * 1000003 + next;
    int32_t place = (int32_t)((key * 0x9E3779B97F4A7C15u) >> 48) % ASKED;
    if (asked[place].next != next || asked[place].words.folded != words.folded || asked[place].words.length != words.length) {
        asked[place].words = words, asked[place].next = next;
        asked[place].cost = cost_of(words, next), asked[place].after = follow(words, next);
    }
    *after = asked[place].after;
    return asked[place].cost;
}

/* The factor that the end of the prefix's unfinished word brings; `after` becomes what stands behind it. */
static double end_of(Prefix *prefix) {
    if (prefix->end == NOT_YET) {
        prefix->after = prefix->words;
        prefix->end = 1;
        if (prefix->letters != BEGINNING) {
            prefix->end = rest[prefix->letters];
            if (unigrams) {
                uint32_t cost = ask(prefix->words, token[prefix->letters], &prefix->after);
                prefix->end *= coarse[cost >> 8] * fine[cost & 255];
            }
            if (prefix->end < TINY) prefix->end = TINY;
        }
    }
    return prefix->end;
}

/* ---- the search */

static Node *nodes;
static int32_t n_nodes, nodes_reserved;
static Prefix *beam, *other;
static int32_t n_beam;
static Candidate *found, *sorted;
static Masses *before;
static double *gains;
static int32_t *marked, *holder, mark, holders; /* a hash table of `holders` places, those of this step are marked */

static int32_t add_node(int32_t parent, int32_t label, int32_t place, double peak) {
    if (n_nodes == nodes_reserved) { /* nothing was reserved after the tree, so it goes on in one piece */
        reserve(NODES * sizeof(Node));
        nodes_reserved += NODES;
    }
    nodes[n_nodes] = (Node){peak, parent, label, place, NONE};
    return n_nodes++;
}

static int32_t bucket_of(double score, double best) {
    union { double value; uint64_t bits; } low = {score}, high = {best}; /* the larger, the larger their bits */
    uint64_t below = (high.bits - low.bits) >> 46;
    return below < BUCKETS ? (int32_t)below : BUCKETS - 1;
}

/* Sort what was found, best bucket first, into `sorted`: a counting sort. */
static void sort_found(int32_t n, double best) {
    int32_t places[BUCKETS + 1] = {0};
    for (int32_t i = 0; i < n; i++) places[bucket_of(found[i].score, best) + 1]++;
    for (int32_t i = 1; i <= BUCKETS; i++) places[i] += places[i - 1];
    for (int32_t i = 0; i < n; i++) sorted[places[bucket_of(found[i].score, best)]++] = found[i];
}

static int same_future(const Prefix *a, const Prefix *b) {
    return a->letters == b->letters && a->last == b->last && a->hot == b->hot && a->words.length == b->words.length &&
           a->words.folded == b->words.folded;
}

/* Whether a likelier prefix with the same future is in the beam already; else this one, number `place`, is the likeliest. */
static int is_known(const Prefix *beam, int32_t place) {
    const Prefix *prefix = &beam[place];
    uint64_t key = prefix->words.folded * 31 + prefix->words.length;
    key = (key * 1000003 + prefix->letters) * 1000003 + prefix->last + ((uint64_t)prefix->hot << 32);
    key *= 0x9E3779B97F4A7C15u;
    int32_t hash = (int32_t)((key >> 33) % holders);
    for (; marked[hash] == mark; hash = hash + 1 == holders ? 0 : hash + 1)
        if (same_future(&beam[holder[hash]], prefix)) return 1;
    marked[hash] = mark, holder[hash] = place;
    return 0;
}

/* One step of these weighed probabilities (`clear`: unweighed), trying k labels, of which number `space` is the space,
 * if it is not NONE. Returns the score of the best prefix, by which all masses are divided. */
static double step(const double *row, const double *clear, const int32_t *tried, int32_t k, int32_t space, int32_t place) {
    int32_t blank = options.n_labels - 1, n = n_beam, n_found = 0, kept = 0;
    double floor = row[blank], best = 0;
    for (int32_t i = 0; i < n; i++) {
        Prefix *prefix = &beam[i];
        before[i] = (Masses){prefix->blank, prefix->blank + prefix->label};
        prefix->blank = before[i].total * row[blank];
        prefix->label *= row[prefix->last];
        if (prefix->label > floor) floor = prefix->label;
        nodes[prefix->node].slot = i;
    }
    floor *= options.beam_floor;
    for (int32_t i = 0; i < n; i++) {
        Prefix *prefix = &beam[i];
        for (int32_t j = 0; j < k; j++) {
            int32_t label = tried[j];
            double *gain = &gains[i * k + j];
            *gain = (label == prefix->last ? before[i].blank : before[i].total) * row[label];
            if (!(*gain > floor)) {
                *gain = 0;
                continue;
            }
            *gain *= plain.weight[prefix->letters * options.n_labels + label];
            if (hot.next) *gain *= hot.weight[prefix->hot * options.n_labels + label];
            if (j == space) {
                if (label == prefix->last) { /* a second space writes nothing, nor does one at the beginning */
                    prefix->label += *gain;
                    *gain = 0;
                    continue;
                }
                *gain *= end_of(prefix);
            }
            if (*gain > best) best = *gain;
            found[n_found++] = (Candidate){0, i, j};
        }
    }
    for (int32_t i = 0; i < n; i++) { /* what leads to a prefix that is in the beam already belongs to it */
        Prefix *prefix = &beam[i];
        int32_t parent = nodes[nodes[prefix->node].parent].slot;
        for (int32_t j = 0; j < k && parent != NONE; j++)
            if (tried[j] == prefix->last) {
                prefix->label += gains[parent * k + j];
                gains[parent * k + j] = 0;
            }
        if (prefix->blank + prefix->label > best) best = prefix->blank + prefix->label;
    }
    int32_t n_new = n_found;
    n_found = 0;
    for (int32_t i = 0; i < n_new; i++) {
        double score = gains[found[i].prefix * k + found[i].tried];
        if (score > best * options.beam_floor) found[n_found++] = (Candidate){score, found[i].prefix, found[i].tried};
    }
    for (int32_t i = 0; i < n; i++) {
        Prefix *prefix = &beam[i];
        Node *node = &nodes[prefix->node];
        double score = prefix->blank + prefix->label;
        node->slot = NONE;
        if (clear[prefix->last] > node->peak && prefix->label > prefix->blank)
            node->peak = clear[prefix->last], node->place = place;
        if (score > best * options.beam_floor) found[n_found++] = (Candidate){score, i, NONE};
    }
    sort_found(n_found, best);
    mark++;
    for (int32_t i = 0; i < n_found && kept < options.width; i++) {
        Candidate next = sorted[i];
        Prefix *prefix = &other[kept];
        *prefix = beam[next.prefix];
        if (next.tried == NONE) {
            prefix->blank /= best, prefix->label /= best;
        } else {
            int32_t label = tried[next.tried];
            if (next.tried == space) prefix->words = prefix->after;
            prefix->letters = plain.next[prefix->letters * options.n_labels + label];
            if (hot.next) prefix->hot = hot.next[prefix->hot * options.n_labels + label];
            prefix->last = label;
            prefix->blank = 0, prefix->label = next.score / best, prefix->end = NOT_YET;
        }
        if (options.recombine && is_known(other, kept)) continue;
        if (next.tried != NONE) prefix->node = add_node(prefix->node, prefix->last, place, clear[prefix->last]);
        kept++;
    }
    Prefix *last = beam;
    beam = other, other = last, n_beam = kept;
    return best;
}

/* Search n steps. `rows` and `clear` are (n, n_labels), `tried` (n, k) the labels to try in each step, of which
 * `counts` are meant, `spaces` the number of the space among them or NONE; `gaps`: blanks were left out before the step.
 * `best` (n) takes the scores that the masses were divided by. Returns the number of prefixes in `found_prefixes`. */
EXPORT(search) int32_t search(int32_t n, const double *rows, const double *clear, int32_t k, const int32_t *tried,
                              const int32_t *counts, const int32_t *spaces, const int32_t *gaps, double *best) {
    int32_t width = options.width;
    beam = reserve((width + 1) * sizeof(Prefix)), other = reserve((width + 1) * sizeof(Prefix));
    before = reserve(width * sizeof(Masses)), gains = reserve(width * k * sizeof(double));
    found = reserve(width * (k + 1) * sizeof(Candidate));
    sorted = reserve(width * (k + 1) * sizeof(Candidate));
    holders = 2 * width + 1, mark = 0;
    marked = reserve(holders * sizeof(int32_t)), holder = reserve(holders * sizeof(int32_t));
    for (int32_t i = 0; i < holders; i++) marked[i] = 0;
    nodes = reserve(0), n_nodes = nodes_reserved = 0;
    add_node(0, 0, 0, 0); /* the root's parent, never in the beam */
    add_node(0, options.space, 0, 0);
    beam[0] = (Prefix){.blank = 1, .end = NOT_YET, .words = {0, unigrams ? 1 : 0, 0}, .node = ROOT, .last = options.space};
    n_beam = 1;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; gaps[i] && j < n_beam; j++) beam[j].blank += beam[j].label, beam[j].label = 0;
        best[i] = step(rows + i * options.n_labels, clear + i * options.n_labels, tried + i * k, counts[i], spaces[i], i);
    }
    for (int32_t i = 0; i < n_beam; i++) end_of(&beam[i]);
    return n_beam;
}

EXPORT(found_prefixes) Prefix *found_prefixes(void) { return beam; }
EXPORT(found_nodes) Node *found_nodes(void) { return nodes; }
EXPORT(count_nodes) int32_t count_nodes(void) { return n_nodes; }
