/* A barrier for the threads of llama.cpp, in the place of libgomp's.
 *
 * ggml's threads meet after every node of a graph, some 500 times a token. At each meeting the last one to come calls
 * the kernel in libgomp to wake the others, though they mostly have not gone to sleep yet; here it looks first whether
 * one sleeps. The pointers through which ggml's library calls GOMP_parallel and GOMP_barrier are set to the two
 * functions below, which call those they led to before: threads and their teams stay libgomp's, and no other library of
 * the process is touched.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define CROWDED_SPINS 100 /* as libgomp has it where there are more threads than cores */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define RELAX() __asm__ volatile("yield" ::: "memory")
#else
#define RELAX() __asm__ volatile("" ::: "memory")
#endif

#if __SIZEOF_LONG__ == 8
#define SYMBOL_OF(info) ELF64_R_SYM(info)
#else
#define SYMBOL_OF(info) ELF32_R_SYM(info)
#endif

typedef void (*parallel_t)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
typedef void (*barrier_t)(void);
typedef int (*count_t)(void);

/* One parallel region. What is written at each meeting lies in cache lines of its own. */
typedef struct {
    void (*function)(void *);
    void *data;
    atomic_uint size;
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint meetings; /* how many there were: what sleepers wait for */
    atomic_uint sleepers;
} team_t;

static parallel_t their_parallel;
static barrier_t their_barrier;
static count_t their_size;
static atomic_uint spins; /* turns that a thread looks whether the others have come, before it sleeps */
static atomic_uint cores;
static atomic_uint members; /* of all teams that are at work */
static __thread team_t *mine;

static void member(void *argument) {
    team_t *team = argument, *outer = mine;
    /* All store the same number, and each before it comes to a barrier. */
    atomic_store_explicit(&team->size, (unsigned)their_size(), memory_order_relaxed);
    atomic_fetch_add_explicit(&members, 1, memory_order_relaxed);
    mine = team;
    team->function(team->data);
    mine = outer;
    atomic_fetch_sub_explicit(&members, 1, memory_order_relaxed);
}

static void parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags) {
    team_t team = {.function = function, .data = data};
    /* Who has come here has read the pointer to it; what was set before that pointer is read behind it. */
    atomic_thread_fence(memory_order_acquire);
    /* It returns when all members have: nobody looks at the team any more. */
    their_parallel(member, &team, threads, flags);
}

/* Turns that a thread would take now. */
EXPORT uint32_t edgellm_barrier_turns(void) {
    unsigned turns = atomic_load_explicit(&spins, memory_order_relaxed);
    bool is_crowded = atomic_load_explicit(&members, memory_order_relaxed) > atomic_load_explicit(&cores, memory_order_relaxed);
    return is_crowded && turns > CROWDED_SPINS ? CROWDED_SPINS : turns;
}

static void barrier(void) {
    team_t *team = mine;
    if (team == NULL) { /* a region that began before ours was installed */
        atomic_thread_fence(memory_order_acquire);
        their_barrier();
        return;
    }
    int error = errno;
    unsigned size = atomic_load_explicit(&team->size, memory_order_relaxed);
    unsigned meeting = atomic_load_explicit(&team->meetings, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == size) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        /* In one order with what a sleeper does: either it is seen here, or it sees the new number. */
        atomic_store(&team->meetings, meeting + 1);
        if (atomic_load(&team->sleepers) != 0)
            syscall(SYS_futex, &team->meetings, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
        errno = error;
        return;
    }
    unsigned turns = edgellm_barrier_turns();
    for (unsigned turn = 0; turn < turns; turn++) {
        if (atomic_load_explicit(&team->meetings, memory_order_acquire) != meeting) return;
        RELAX();
    }
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->meetings) == meeting)
        syscall(SYS_futex, &team->meetings, FUTEX_WAIT_PRIVATE, meeting, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleepers, 1);
    errno = error;
}

/* -- putting it in its place ------------------------------------------------------------------------------------- */

typedef struct {
    uintptr_t inside; /* an address of the object that is looked for */
    uintptr_t base;
    uintptr_t start, end; /* of all that is loaded of it */
    const ElfW(Dyn) *dynamic;
    uintptr_t sealed, sealed_end; /* what the loader has made read-only (PT_GNU_RELRO) */
} object_t;

static int is_object(struct dl_phdr_info *info, size_t size, void *argument) {
    (void)size;
    object_t *object = argument;
    bool is_here = false;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), dynamic = 0, sealed = 0, sealed_end = 0, first = UINTPTR_MAX, last = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD) {
            is_here = is_here || object->inside - start < part->p_memsz;
            first = start < first ? start : first;
            last = start + part->p_memsz > last ? start + part->p_memsz : last;
        }
        if (part->p_type == PT_DYNAMIC) dynamic = start;
        if (part->p_type == PT_GNU_RELRO) {
            sealed = start & ~(page - 1);
            sealed_end = (start + part->p_memsz) & ~(page - 1);
        }
    }
    if (!is_here || dynamic == 0) return 0;
    object->base = info->dlpi_addr;
    object->start = first;
    object->end = last;
    object->dynamic = (const ElfW(Dyn) *)dynamic;
    object->sealed = sealed;
    object->sealed_end = sealed_end;
    return 1;
}

/* What a dynamic entry points to. glibc has added the base to it already, musl has not. */
static uintptr_t pointed(const object_t *object, uintptr_t value) {
    return value < object->base ? value + object->base : value;
}

static uintptr_t entry(const object_t *object, ElfW(Sxword) tag) {
    for (const ElfW(Dyn) *at = object->dynamic; at->d_tag != DT_NULL; at++)
        if (at->d_tag == tag) return at->d_un.d_val;
    return 0;
}

/* The pointer through which the object calls `name`, in one of its tables of relocations; NULL where it does not. */
static void **slot_in(const object_t *object, uintptr_t table, size_t bytes, bool has_addends, const char *name) {
    const ElfW(Sym) *symbols = (const ElfW(Sym) *)pointed(object, entry(object, DT_SYMTAB));
    const char *names = (const char *)pointed(object, entry(object, DT_STRTAB));
    size_t step = has_addends ? sizeof(ElfW(Rela)) : sizeof(ElfW(Rel));
    for (size_t at = 0; table != 0 && at + step <= bytes; at += step) {
        /* Rela begins as Rel does. */
        const ElfW(Rel) *relocation = (const ElfW(Rel) *)(pointed(object, table) + at);
        uintptr_t symbol = SYMBOL_OF(relocation->r_info);
        if (symbol != 0 && strcmp(names + symbols[symbol].st_name, name) == 0)
            return (void **)(object->base + relocation->r_offset);
    }
    return NULL;
}

static void **slot_of(const object_t *object, const char *name) {
    void **slot = slot_in(object, entry(object, DT_JMPREL), entry(object, DT_PLTRELSZ),
                          entry(object, DT_PLTREL) == DT_RELA, name);
    if (slot == NULL) slot = slot_in(object, entry(object, DT_RELA), entry(object, DT_RELASZ), true, name);
    if (slot == NULL) slot = slot_in(object, entry(object, DT_REL), entry(object, DT_RELSZ), false, name);
    return slot;
}

/* Where a pointer of the object leads, which is outside of it; NULL where nothing has been looked up yet, or nothing is. */
static void *bound(const object_t *object, void **slot) {
    void *function = slot != NULL ? __atomic_load_n(slot, __ATOMIC_ACQUIRE) : NULL;
    return (uintptr_t)function - object->start < object->end - object->start ? NULL : function;
}

static bool set(const object_t *object, void **slot, void *function) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)slot & ~(page - 1);
    bool is_sealed = start >= object->sealed && start < object->sealed_end;
    if (is_sealed && mprotect((void *)start, page, PROT_READ | PROT_WRITE) != 0) return false;
    __atomic_store_n(slot, function, __ATOMIC_RELEASE);
    if (is_sealed) mprotect((void *)start, page, PROT_READ);
    return true;
}

EXPORT int32_t edgellm_barrier_version(void) { return 1; } /* VERSION in barrier.py */

/* Lets the object that `inside` lies in use this barrier from its next parallel region on. `turns`: how often a thread
 * looks before it sleeps; `usable`: cores. 1 where it does, 0 where it keeps the barrier it has: another OpenMP, or
 * none, or it cannot be reached. Not for two threads at once. Again: other turns and cores. */
EXPORT int32_t edgellm_barrier_install(const void *inside, uint32_t turns, uint32_t usable) {
    object_t object = {.inside = (uintptr_t)inside};
    if (dl_iterate_phdr(is_object, &object) != 1) return 0;
    void **parallel_slot = slot_of(&object, "GOMP_parallel"), **barrier_slot = slot_of(&object, "GOMP_barrier");
    /* Not what the object was linked with counts, but what the loader has found: another libgomp may have come first. */
    void *bound_parallel = bound(&object, parallel_slot), *bound_barrier = bound(&object, barrier_slot);
    void *bound_size = bound(&object, slot_of(&object, "omp_get_num_threads"));
    if (bound_parallel == NULL || bound_barrier == NULL || bound_size == NULL) return 0;
    if (bound_parallel != (void *)parallel) {
        /* Of two libgomps in the process only one can have these teams. */
        if (their_parallel != NULL && (void *)their_parallel != bound_parallel) return 0;
        their_parallel = (parallel_t)bound_parallel;
        their_barrier = (barrier_t)bound_barrier;
        their_size = (count_t)bound_size;
    }
    atomic_store(&spins, turns);
    atomic_store(&cores, usable);
    /* In this order: without a team of ours the barrier is theirs. */
    return set(&object, barrier_slot, (void *)barrier) && set(&object, parallel_slot, (void *)parallel);
}
