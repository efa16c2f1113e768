/* The client whose system calls are timed: as little between them as can be.
 *
 *     client OPERATION KEY=VALUE...      prints {"count": N, "ns": T}
 *
 * Only the calls themselves lie between the two readings of the clock; changing to `dir`, filling buffers and
 * opening what is not part of the operation come before. Names are f000000, f000001, ..., or, with per_dir=P,
 * d000000/f000000 with P files in every directory. Which of them: number `start`, then every `step`-th, `count` in all.
 * Contents depend on `seed` and the number of the file (or the position in it) only, so that the same arguments give
 * the same bytes, and other seeds share nothing with them, not even a stretch of 4 KiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A stream repeats itself, but for the numbers in it, after PERIOD bytes: long enough to be cut by its contents in many
 * places. Of a shorter one that happens to have no such place, a change would move every cut behind it. */
enum { BLOCK = 4096, POOL = 1 << 20, PERIOD = 64 << 20, MAX_WORKERS = 256 };

static const char *dir = ".", *file = "stream", *prefix = "f", *to_prefix = "r";
static uint64_t count = 1, start = 0, step = 1, per_dir = 0, size = 2048, seed = 1;
static uint64_t call = POOL, shift = 0, fsync_each = 0, fsync_every = 0, workers = 1;
static unsigned char *pool;
static uint64_t random_state;

static void die(const char *what) {
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* splitmix64: every state gives an unrelated number. */
static uint64_t next_random(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void fill_random(unsigned char *data, size_t length, uint64_t from) {
    random_state = from * 0x2545f4914f6cdd1du + 1;
    for (size_t i = 0; i + sizeof(uint64_t) <= length; i += sizeof(uint64_t)) {
        uint64_t number = next_random();
        memcpy(data + i, &number, sizeof number);
    }
}

static void fill_pool(uint64_t from) { fill_random(pool, POOL, from); }

static void name_of(char *out, size_t room, const char *with, uint64_t number) {
    if (per_dir)
        snprintf(out, room, "d%06llu/%s%06llu", (unsigned long long)(number / per_dir), with,
                 (unsigned long long)number);
    else
        snprintf(out, room, "%s%06llu", with, (unsigned long long)number);
}

static void write_all(int fd, const unsigned char *from, size_t length) {
    while (length) {
        ssize_t done = write(fd, from, length);
        if (done < 0) die("write");
        from += done;
        length -= (size_t)done;
    }
}

/* Operations on many names. */

static void create_one(const char *path, uint64_t number) {
    uint64_t stamp[2] = {seed, number};
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd < 0) die(path);
    memcpy(pool, stamp, size < sizeof stamp ? size : sizeof stamp);
    write_all(fd, pool, size);
    if (fsync_each && fsync(fd)) die("fsync");
    if (close(fd)) die("close");
}

static void read_one(const char *path, unsigned char *buffer) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) die(path);
    if (read(fd, buffer, POOL) < 0) die("read");
    close(fd);
}

static uint64_t on_names(const char *operation) {
    char path[300], other[300];
    struct stat attributes;
    unsigned char *buffer = malloc(POOL);
    enum { CREATE, STAT, READ, RENAME, UNLINK, MKDIR, RMDIR } what;
    if (!strcmp(operation, "create")) what = CREATE;
    else if (!strcmp(operation, "stat")) what = STAT;
    else if (!strcmp(operation, "read")) what = READ;
    else if (!strcmp(operation, "rename")) what = RENAME;
    else if (!strcmp(operation, "unlink")) what = UNLINK;
    else if (!strcmp(operation, "mkdir")) what = MKDIR;
    else if (!strcmp(operation, "rmdir")) what = RMDIR;
    else {
        fprintf(stderr, "client: no operation %s\n", operation);
        exit(2);
    }
    memset(buffer, 0, POOL);
    uint64_t begun = now_ns();
    for (uint64_t k = 0; k < count; k++) {
        uint64_t number = start + k * step;
        name_of(path, sizeof path, prefix, number);
        switch (what) {
        case CREATE:
            if (per_dir && number % per_dir == 0) {
                *strchr(path, '/') = 0;
                if (mkdir(path, 0755)) die(path);
                path[strlen(path)] = '/';
            }
            create_one(path, number);
            break;
        case STAT:
            if (stat(path, &attributes)) die(path);
            break;
        case READ:
            read_one(path, buffer);
            break;
        case RENAME:
            name_of(other, sizeof other, to_prefix, number);
            if (rename(path, other)) die(path);
            break;
        case UNLINK:
            if (unlink(path)) die(path);
            break;
        case MKDIR:
            if (mkdir(path, 0755)) die(path);
            break;
        case RMDIR:
            if (rmdir(path)) die(path);
            break;
        }
    }
    uint64_t took = now_ns() - begun;
    free(buffer);
    return took;
}

/* Operations on one file of `size` bytes. */

/* `size` bytes that depend on the seed, in calls of `call` bytes, which divides PERIOD; every 4 KiB carries its own
 * number, so none of them occurs twice. With shift=N, N bytes more stand in front of them. The clock includes open, close
 * and, with fsync_each, a sync of what is then closed. In memory there is as much of the stream as it repeats. */
static uint64_t sequential_write(const char *name) {
    unsigned char *front = calloc(1, shift + 1);
    size_t turn = size < PERIOD ? (size + BLOCK - 1) / BLOCK * BLOCK : PERIOD;
    unsigned char *data = malloc(turn);
    if (!front || !data) die("malloc");
    fill_random(data, turn, seed);
    uint64_t begun = now_ns();
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) die(name);
    if (shift) write_all(fd, front, shift);
    for (uint64_t at = 0; at < size;) {
        size_t offset = at % turn, length = call;
        if (length > turn - offset) length = turn - offset;
        if (length > size - at) length = size - at;
        for (uint64_t block = (at + BLOCK - 1) / BLOCK; block * BLOCK < at + length; block++) {
            uint64_t stamp[2] = {seed, block};
            memcpy(data + block * BLOCK % turn, stamp, sizeof stamp);
        }
        write_all(fd, data + offset, length);
        at += length;
    }
    if (close(fd)) die("close");
    if (fsync_each) {
        if ((fd = open(name, O_RDONLY)) < 0 || fsync(fd) || close(fd)) die("fsync");
    }
    uint64_t took = now_ns() - begun;
    free(data);
    free(front);
    return took;
}

static uint64_t sequential_read(const char *name) {
    unsigned char *buffer = malloc(call);
    memset(buffer, 0, call);
    uint64_t begun = now_ns(), total = 0;
    int fd = open(name, O_RDONLY);
    if (fd < 0) die(name);
    for (ssize_t got; (got = read(fd, buffer, call)) != 0; total += (uint64_t)got)
        if (got < 0) die("read");
    close(fd);
    uint64_t took = now_ns() - begun;
    if (total != size) {
        fprintf(stderr, "client: %s has %llu bytes\n", name, (unsigned long long)total);
        exit(1);
    }
    free(buffer);
    return took;
}

/* `count` calls of 4 KiB at random multiples of 4 KiB. */
static uint64_t random_access(const char *name, int writing) {
    int fd = open(name, writing ? O_RDWR : O_RDONLY);
    if (fd < 0) die(name);
    fill_pool(seed);
    uint64_t begun = now_ns();
    for (uint64_t k = 0; k < count; k++) {
        off_t at = (off_t)(next_random() % (size / BLOCK) * BLOCK);
        if (writing) {
            memcpy(pool, &k, sizeof k);
            if (pwrite(fd, pool, BLOCK, at) != BLOCK) die("pwrite");
            if (fsync_every && (k + 1) % fsync_every == 0 && fsync(fd)) die("fsync");
        } else if (pread(fd, pool, BLOCK, at) != BLOCK) {
            die("pread");
        }
    }
    uint64_t took = now_ns() - begun;
    if (close(fd)) die("close");
    return took;
}

/* One 4 KiB block in the middle of the file: open, change, close, sync. */
static uint64_t change(const char *name) {
    fill_pool(seed);
    uint64_t begun = now_ns();
    int fd = open(name, O_WRONLY);
    if (fd < 0) die(name);
    if (pwrite(fd, pool, BLOCK, (off_t)(size / 2 / BLOCK * BLOCK)) != BLOCK) die("pwrite");
    if (close(fd)) die("close");
    if ((fd = open(name, O_RDONLY)) < 0 || fsync(fd) || close(fd)) die("fsync");
    return now_ns() - begun;
}

static uint64_t once(const char *operation) {
    if (!strcmp(operation, "seqwrite")) return sequential_write(file);
    if (!strcmp(operation, "seqread")) return sequential_read(file);
    if (!strcmp(operation, "randread")) return random_access(file, 0);
    if (!strcmp(operation, "randwrite")) return random_access(file, 1);
    if (!strcmp(operation, "change")) return change(file);
    return on_names(operation);
}

/* The same by several processes at once, each in a directory w0, w1, ... of its own, with a seed of its own; from the
 * moment all are ready until the last is done. */
static uint64_t at_once(const char *operation) {
    int ready[2], go[2];
    pid_t pids[MAX_WORKERS];
    char byte = 0;
    if (workers > MAX_WORKERS) errno = EINVAL, die("workers");
    if (pipe(ready) || pipe(go)) die("pipe");
    for (uint64_t w = 0; w < workers; w++) {
        if ((pids[w] = fork()) < 0) die("fork");
        if (pids[w] == 0) {
            char name[32];
            snprintf(name, sizeof name, "w%llu", (unsigned long long)w);
            if ((mkdir(name, 0755) && errno != EEXIST) || chdir(name)) die(name);
            seed = seed * 1000003u + w;
            fill_pool(seed);
            close(go[1]);
            if (write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) < 0) die("pipe");
            once(operation);
            _exit(0);
        }
    }
    for (uint64_t w = 0; w < workers; w++)
        if (read(ready[0], &byte, 1) != 1) die("pipe");
    close(go[0]);
    uint64_t begun = now_ns();
    close(go[1]);
    int failed = 0, status;
    for (uint64_t w = 0; w < workers; w++)
        if (waitpid(pids[w], &status, 0) < 0 || status) failed = 1;
    uint64_t took = now_ns() - begun;
    if (failed) exit(1);
    return took;
}

int main(int argc, char **argv) {
    struct { const char *key; const char **text; uint64_t *number; } keys[] = {
        {"dir", &dir, 0}, {"file", &file, 0}, {"prefix", &prefix, 0}, {"to_prefix", &to_prefix, 0},
        {"count", 0, &count}, {"start", 0, &start}, {"step", 0, &step}, {"per_dir", 0, &per_dir},
        {"size", 0, &size}, {"seed", 0, &seed}, {"call", 0, &call}, {"shift", 0, &shift},
        {"fsync_each", 0, &fsync_each}, {"fsync_every", 0, &fsync_every}, {"workers", 0, &workers},
    };
    if (argc < 2) {
        fprintf(stderr, "usage: client OPERATION KEY=VALUE...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        size_t k = 0, known = sizeof keys / sizeof *keys;
        if (value)
            for (*value++ = 0; k < known && strcmp(keys[k].key, argv[i]); k++) {}
        if (!value || k == known) {
            fprintf(stderr, "client: what is %s?\n", argv[i]);
            return 2;
        }
        if (keys[k].text) *keys[k].text = value;
        else *keys[k].number = strtoull(value, 0, 10);
    }
    /* on_names writes a file from the pool in one piece; reads of a file go into as much. */
    int on_one_file = !strncmp(argv[1], "seq", 3) || !strncmp(argv[1], "rand", 4) || !strcmp(argv[1], "change");
    if (call == 0 || PERIOD % call || step == 0 || workers == 0 || (!on_one_file && size > POOL)) {
        fprintf(stderr, "client: a value is out of range\n");
        return 2;
    }
    if (!(pool = malloc(POOL))) die("malloc");
    fill_pool(seed);
    if (chdir(dir)) die(dir);
    uint64_t took = workers > 1 ? at_once(argv[1]) : once(argv[1]);
    printf("{\"count\": %llu, \"ns\": %llu}\n", (unsigned long long)(count * workers), (unsigned long long)took);
    return 0;
}
