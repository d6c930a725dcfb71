/* Preloaded into a process that appends: calls on files of one directory fail, are cut short, or kill the
 * process, at the n-th of their kind. Every such call is logged, a line each: its name, the inode, the name of
 * the file, and what it came to.
 *
 * THALWEG_SHIM_DIR   the directory
 * THALWEG_SHIM_LOG   the log, appended to
 * THALWEG_SHIM       CALL:N:WHAT; WHAT is the number of an error, `torn` (half of it, then EIO), `short`, `zero`,
 *                    `kill` (before the call) or `killed` (behind it)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum what { NONE, ERROR, TORN, SHORT, ZERO, KILL, KILLED };

static const char *dir;
static char call_name[16];
static long nth;
static enum what what;
static int number;
static int log_fd = -1;
static atomic_long count;

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("THALWEG_SHIM_LOG"), *plan = getenv("THALWEG_SHIM");
    char word[16] = "";
    if (log) log_fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (plan && sscanf(plan, "%15[a-z]:%ld:%15s", call_name, &nth, word) == 3) {
        const char *words[] = {"", "", "torn", "short", "zero", "kill", "killed"};
        what = ERROR;
        number = atoi(word);
        for (int index = TORN; index <= KILLED; index++)
            if (!strcmp(word, words[index])) what = index;
    }
    dir = getenv("THALWEG_SHIM_DIR");
}

/* The name below the directory; nothing if it is elsewhere. */
static const char *below(const char *path) {
    size_t len = dir ? strlen(dir) : 0;
    if (!len || strncmp(path, dir, len) || (path[len] && path[len] != '/')) return NULL;
    return path[len] ? path + len + 1 : ".";
}

static const char *name_of(int fd, char *path, size_t room) {
    char link[32];
    if (!dir || fd < 0) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, room - 1);
    if (len < 0) return NULL;
    path[len] = 0;
    return below(path);
}

/* What is to become of this call. */
static enum what fate(const char *call) {
    if (what == NONE || strcmp(call, call_name) || atomic_fetch_add(&count, 1) + 1 != nth) return NONE;
    if (what == KILL) kill(getpid(), SIGKILL);
    return what;
}

static void note(const char *call, int fd, const char *name, long result, enum what happened) {
    int error = errno;
    struct stat stat = {0};
    char line[600];
    if (fd >= 0) fstat(fd, &stat);
    int len = snprintf(line, sizeof line, "%s %lu %s %ld %s\n", call, (unsigned long)stat.st_ino, name, result,
                       happened == NONE ? "-" : "injected");
    if (log_fd >= 0 && write(log_fd, line, len) < 0) abort();
    if (happened == KILLED) kill(getpid(), SIGKILL);
    errno = error;
}

#define REAL(symbol) ((__typeof__(&symbol))dlsym(RTLD_NEXT, #symbol))

/* A call on a descriptor that has no length. */
#define ON_FD(symbol, call, real, fd)                                          \
    char path[512];                                                            \
    const char *name = name_of(fd, path, sizeof path);                         \
    if (!name) return real;                                                    \
    enum what now = fate(call);                                                \
    int result;                                                                \
    if (now == NONE || now == KILLED) result = real;                           \
    else { errno = number ? number : EIO; result = -1; }                       \
    note(call, fd, name, result, now);                                         \
    return result;

int fdatasync(int fd) { ON_FD(fdatasync, "fdatasync", REAL(fdatasync)(fd), fd) }
int fsync(int fd) { ON_FD(fsync, "fsync", REAL(fsync)(fd), fd) }
int ftruncate64(int fd, off64_t len) { ON_FD(ftruncate64, "ftruncate", REAL(ftruncate64)(fd, len), fd) }

#define ON_BYTES(call, real)                                                   \
    char path[512];                                                            \
    const char *name = name_of(fd, path, sizeof path);                         \
    size_t half = len > 1 ? len / 2 : len, now_len = len;                      \
    if (!name) return real;                                                    \
    enum what now = fate(call);                                                \
    ssize_t result = 0;                                                        \
    if (now == SHORT || now == TORN) now_len = half;                           \
    if (now == NONE || now == SHORT || now == TORN || now == KILLED) result = real; \
    if (now == TORN) { errno = EIO; result = -1; }                             \
    if (now == ERROR) { errno = number; result = -1; }                         \
    note(call, fd, name, result, now);                                         \
    return result;

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    ON_BYTES("pwrite", REAL(pwrite64)(fd, bytes, now_len, at))
}
ssize_t pread64(int fd, void *bytes, size_t len, off64_t at) {
    ON_BYTES("pread", REAL(pread64)(fd, bytes, now_len, at))
}

void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset) {
    char path[512];
    const char *name = name_of(fd, path, sizeof path);
    if (!name) return REAL(mmap64)(at, len, protection, flags, fd, offset);
    enum what now = fate("mmap");
    void *map = MAP_FAILED;
    if (now == NONE || now == KILLED) map = REAL(mmap64)(at, len, protection, flags, fd, offset);
    else errno = number ? number : ENOMEM;
    note("mmap", fd, name, map == MAP_FAILED ? -1 : 0, now);
    return map;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    const char *name = below(path);
    if (!name) return REAL(open64)(path, flags, mode);
    enum what now = fate("open");
    int fd = -1;
    if (now == NONE || now == KILLED) fd = REAL(open64)(path, flags, mode);
    else errno = number ? number : EIO;
    note("open", fd, name, fd < 0 ? -1 : 0, now);
    return fd;
}

#define ON_PATH(call, path, real)                                              \
    const char *name = below(path);                                            \
    if (!name) return real;                                                    \
    enum what now = fate(call);                                                \
    int result = -1;                                                           \
    if (now == NONE || now == KILLED) result = real;                           \
    else errno = number ? number : EIO;                                        \
    note(call, -1, name, result, now);                                         \
    return result;

int rename(const char *from, const char *to) { ON_PATH("rename", from, REAL(rename)(from, to)) }
int unlink(const char *path) { ON_PATH("unlink", path, REAL(unlink)(path)) }
