/* Records what a process does to the files below one folder, in the order in which the kernel saw it.
 *
 *   LD_PRELOAD=recorder.so RECORD_ROOT=/folder RECORD_LOG=/elsewhere/log program …
 *
 * Each call that changes a file, a name or what is durable becomes one record, appended after the call has succeeded:
 *
 *   u32 kind, u32 flags, u64 inode, u64 a, u64 b, u32 length, u32 length2, then the bytes, then the second bytes
 *
 *   kind      inode       a           b              bytes      second bytes
 *   W write   file        offset      -              the data                   flags 1: O_DSYNC or O_SYNC
 *   T size    file        the size    -
 *   P punch   file        offset      length
 *   S sync    file/dir    -           -
 *   A sync    everything
 *   L name    directory   inode       -              name       link target     flags 1 new file, 2 new directory, 3 new symbolic link
 *   U unname  directory   -           -              name
 *   R rename  directory   inode       2nd directory  name       new name
 *   M mark    -           -           -              text
 *   X what this cannot record: a file written through a shared map
 *
 * One lock (of threads, and of processes that share the log) is held around call and record, so that the log's order
 * is the true one. lock.mdb, which LMDB maps and whose contents do not outlive the processes, is let pass.
 *
 * It can also disturb: `layerstore_fail` arms a fault at the n-th call of some kinds (those above, R for reads, O for
 * opens, N for what changes names), and `layerstore_calls` says how many of a kind there were.
 *
 * Source: the manual pages of the calls; glibc 2.36, which gives each of them a 64-bit name too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct record {
    uint32_t kind, flags;
    uint64_t inode, a, b;
    uint32_t length, length2;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void start(void)
{
    const char *log = getenv("RECORD_LOG"), *folder = getenv("RECORD_ROOT");
    if (!log || !folder || !realpath(folder, root))
        return;
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* The fault: at call `fault_at` of the kinds in `fault_kinds`, or from there on; a write is cut short first if asked. */
static char fault_kinds[32];
static long fault_at = -1, fault_seen[128];
static int fault_error, fault_stays, fault_short;

void layerstore_fail(const char *kinds, long at, int error, int stays, int is_short)
{
    snprintf(fault_kinds, sizeof fault_kinds, "%s", kinds);
    memset(fault_seen, 0, sizeof fault_seen);
    fault_at = at, fault_error = error, fault_stays = stays, fault_short = is_short;
}

long layerstore_calls(char kind) { return fault_seen[(unsigned char)kind & 127]; }

/* Whether this call is the one; errno is set then. */
static int struck(char kind)
{
    if (!fault_kinds[0] || !strchr(fault_kinds, kind))
        return 0;
    long call = __atomic_fetch_add(&fault_seen[(unsigned char)kind & 127], 1, __ATOMIC_SEQ_CST);
    if (call != fault_at && !(fault_stays && fault_at >= 0 && call > fault_at))
        return 0;
    errno = fault_error;
    return 1;
}

static int enter(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    pthread_mutex_lock(&mutex);
    while (syscall(SYS_fcntl, log_fd, F_SETLKW, &lock) != 0 && errno == EINTR)
        ;
    return 1;
}

static void leave(void)
{
    int saved = errno;
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    syscall(SYS_fcntl, log_fd, F_SETLKW, &lock);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void note(uint32_t kind, uint32_t flags, uint64_t inode, uint64_t a, uint64_t b,
                 const void *bytes, size_t length, const void *bytes2, size_t length2)
{
    int saved = errno;
    struct record head = {kind, flags, inode, a, b, (uint32_t)length, (uint32_t)length2};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)bytes, length}, {(void *)bytes2, length2}};
    if (syscall(SYS_writev, log_fd, parts, 3) != (ssize_t)(sizeof head + length + length2))
        abort();
    errno = saved;
}

/* Whether a descriptor is of something below the root, which `status` then describes. */
static int ours(int fd, struct stat *status)
{
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (log_fd < 0 || fd < 0)
        return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    int found = 0;
    if (length >= (ssize_t)root_length && !memcmp(path, root, root_length) &&
        (length == (ssize_t)root_length || path[root_length] == '/')) {
        path[length] = 0;
        const char *name = strrchr(path, '/');
        found = strncmp(name, "/lock.mdb", 9) != 0 && fstat(fd, status) == 0;
    }
    errno = saved;
    return found;
}

/* A name, as the directory it is in and its last part. */
struct place {
    int is_ours;
    uint64_t directory;
    int fd;
    char name[NAME_MAX + 1];
};

static struct place place_of(int dirfd, const char *path)
{
    struct place found = {.fd = -1};
    struct stat status;
    char parent[PATH_MAX];
    size_t length = strlen(path);
    int saved = errno;
    if (log_fd < 0 || length == 0 || length >= sizeof parent)
        return found;
    while (length > 1 && path[length - 1] == '/')
        length--;
    size_t at = length;
    while (at > 0 && path[at - 1] != '/')
        at--;
    if (length - at > NAME_MAX)
        return found;
    memcpy(found.name, path + at, length - at);
    memcpy(parent, path, at);
    parent[at] = 0;
    if (at == 0)
        strcpy(parent, ".");
    found.fd = syscall(SYS_openat, dirfd, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (found.fd >= 0 && ours(found.fd, &status) && strcmp(found.name, "lock.mdb") != 0) {
        found.is_ours = 1;
        found.directory = status.st_ino;
    }
    errno = saved;
    return found;
}

static void done(struct place *place)
{
    int saved = errno;
    if (place->fd >= 0)
        syscall(SYS_close, place->fd);
    errno = saved;
}

static uint64_t inode_at(struct place *place)
{
    struct stat status;
    int saved = errno;
    int result = fstatat(place->fd, place->name, &status, AT_SYMLINK_NOFOLLOW);
    errno = saved;
    return result == 0 ? status.st_ino : 0;
}

void layerstore_mark(const char *text)
{
    if (log_fd < 0)
        return;
    enter();
    note('M', 0, 0, 0, 0, text, strlen(text), "", 0);
    leave();
}

/* Files: opened, written, cut. */

static int open_noted(int dirfd, const char *path, int flags, mode_t mode)
{
    struct place place = {.fd = -1};
    if (flags & (O_CREAT | O_TRUNC) && (flags & O_TMPFILE) != O_TMPFILE)
        place = place_of(dirfd, path);
    if (!place.is_ours) {
        done(&place);
        int fd = syscall(SYS_openat, dirfd, path, flags, mode);
        struct stat status;
        if (fault_kinds[0] && ours(fd, &status) && struck('O')) {
            syscall(SYS_close, fd);
            errno = fault_error;
            return -1;
        }
        return fd;
    }
    if (struck('O')) {
        done(&place);
        return -1;
    }
    enter();
    uint64_t before = inode_at(&place);
    int fd = syscall(SYS_openat, dirfd, path, flags, mode);
    struct stat status;
    if (fd >= 0 && fstat(fd, &status) == 0) {
        if (!before)
            note('L', 1, place.directory, status.st_ino, 0, place.name, strlen(place.name), "", 0);
        else if (flags & O_TRUNC)
            note('T', 0, status.st_ino, 0, 0, "", 0, "", 0);
    }
    leave();
    done(&place);
    return fd;
}

#define MODE_OF(flags)                       \
    mode_t mode = 0;                         \
    if ((flags) & (O_CREAT | O_TMPFILE)) {   \
        va_list rest;                        \
        va_start(rest, flags);               \
        mode = va_arg(rest, mode_t);         \
        va_end(rest);                        \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return open_noted(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_noted(AT_FDCWD, path, flags, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE_OF(flags) return open_noted(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE_OF(flags) return open_noted(dirfd, path, flags, mode); }

/* What was written is read back: one way for all the calls that write. */
static void note_written(int fd, struct stat *status, off_t at, size_t length)
{
    char *data = malloc(length ? length : 1), own[64];
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    int reader = syscall(SYS_openat, AT_FDCWD, own, O_RDONLY | O_CLOEXEC); /* ours may be write-only */
    if (!data || reader < 0 || syscall(SYS_pread64, reader, data, length, at) != (ssize_t)length)
        abort();
    syscall(SYS_close, reader);
    note('W', (flags & O_DSYNC) != 0, status->st_ino, at, 0, data, length, "", 0);
    free(data);
}

/* `at` is -1 for calls that write at the descriptor's own offset, which are then asked where that was. */
#define WRITING(call, at)                                       \
    struct stat status;                                         \
    if (!ours(fd, &status) || !S_ISREG(status.st_mode))         \
        return call;                                            \
    if (struck('W')) {                                          \
        if (!fault_short || n < 2)                              \
            return -1;                                          \
        n /= 2; /* of bytes, or of buffers */                   \
    }                                                           \
    enter();                                                    \
    ssize_t written = call;                                     \
    if (written > 0) {                                          \
        int saved = errno;                                      \
        off_t from = (at) >= 0 ? (at) : lseek(fd, 0, SEEK_CUR) - written; \
        note_written(fd, &status, from, written);               \
        errno = saved;                                          \
    }                                                           \
    leave();                                                    \
    return written;

ssize_t write(int fd, const void *data, size_t n) { WRITING(syscall(SYS_write, fd, data, n), (off_t)-1) }
ssize_t writev(int fd, const struct iovec *v, int n) { WRITING(syscall(SYS_writev, fd, v, n), (off_t)-1) }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { WRITING(syscall(SYS_pwrite64, fd, data, n, at), at) }
ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) { WRITING(syscall(SYS_pwrite64, fd, data, n, at), at) }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { WRITING(syscall(SYS_pwritev, fd, v, n, at, 0), at) }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) { WRITING(syscall(SYS_pwritev, fd, v, n, at, 0), at) }
ssize_t sendfile(int fd, int in, off_t *from, size_t n) { WRITING(syscall(SYS_sendfile, fd, in, from, n), (off_t)-1) }
ssize_t sendfile64(int fd, int in, off_t *from, size_t n) { WRITING(syscall(SYS_sendfile, fd, in, from, n), (off_t)-1) }
ssize_t copy_file_range(int in, off_t *from, int fd, off_t *to, size_t n, unsigned flags)
{
    off_t at = to ? *to : -1;
    WRITING(syscall(SYS_copy_file_range, in, from, fd, to, n, flags), at)
}

static int noted(int fd, int result, uint32_t kind, uint64_t a, uint64_t b)
{
    struct stat status;
    if (result == 0 && ours(fd, &status))
        note(kind, 0, status.st_ino, a, b, "", 0, "", 0);
    leave();
    return result;
}

#define PLAIN(call, kind, a, b)                        \
    struct stat status;                                \
    if (!ours(fd, &status))                            \
        return call;                                   \
    if (struck((kind) == 'A' ? 'S' : (char)(kind)))    \
        return -1;                                     \
    return enter() ? noted(fd, call, kind, a, b) : -1;

#define READING(call)                              \
    struct stat status;                            \
    if (fault_kinds[0] && ours(fd, &status) && S_ISREG(status.st_mode) && struck('R')) \
        return -1;                                 \
    return call;

ssize_t read(int fd, void *data, size_t n) { READING(syscall(SYS_read, fd, data, n)) }
ssize_t pread(int fd, void *data, size_t n, off_t at) { READING(syscall(SYS_pread64, fd, data, n, at)) }
ssize_t pread64(int fd, void *data, size_t n, off_t at) { READING(syscall(SYS_pread64, fd, data, n, at)) }
ssize_t readv(int fd, const struct iovec *v, int n) { READING(syscall(SYS_readv, fd, v, n)) }

int ftruncate(int fd, off_t size) { PLAIN(syscall(SYS_ftruncate, fd, size), 'T', size, 0) }
int ftruncate64(int fd, off_t size) { PLAIN(syscall(SYS_ftruncate, fd, size), 'T', size, 0) }
int fsync(int fd) { PLAIN(syscall(SYS_fsync, fd), 'S', 0, 0) }
int fdatasync(int fd) { PLAIN(syscall(SYS_fdatasync, fd), 'S', 0, 0) }
int syncfs(int fd) { PLAIN(syscall(SYS_syncfs, fd), 'A', 0, 0) }

static int fallocate_noted(int fd, int mode, off_t at, off_t length)
{
    PLAIN(syscall(SYS_fallocate, fd, mode, at, length), mode & FALLOC_FL_PUNCH_HOLE ? 'P' : 'X', at, length)
}
int fallocate(int fd, int mode, off_t at, off_t length) { return fallocate_noted(fd, mode, at, length); }
int fallocate64(int fd, int mode, off_t at, off_t length) { return fallocate_noted(fd, mode, at, length); }

int truncate(const char *path, off_t size)
{
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = ftruncate(fd, size);
    int saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return result;
}
int truncate64(const char *path, off_t size) { return truncate(path, size); }

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t at)
{
    struct stat status;
    if (fault_kinds[0] && ours(fd, &status) && struck('M'))
        return MAP_FAILED;
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && ours(fd, &status)) {
        enter();
        note('X', 0, status.st_ino, at, length, "", 0, "", 0);
        leave();
    }
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, at);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t at)
{
    return mmap(address, length, protection, flags, fd, at);
}

/* Names: made, moved, taken away. */

#define NAMING(dirfd, path, call, body)                \
    struct place place = place_of(dirfd, path);        \
    if (!place.is_ours) {                              \
        done(&place);                                  \
        return call;                                   \
    }                                                  \
    if (struck('N')) {                                 \
        done(&place);                                  \
        return -1;                                     \
    }                                                  \
    enter();                                           \
    int result = call;                                 \
    if (result == 0) {                                 \
        body                                           \
    }                                                  \
    leave();                                           \
    done(&place);                                      \
    return result;

#define NAME place.name, strlen(place.name)

int mkdirat(int dirfd, const char *path, mode_t mode)
{
    NAMING(dirfd, path, syscall(SYS_mkdirat, dirfd, path, mode),
           note('L', 2, place.directory, inode_at(&place), 0, NAME, "", 0);)
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int symlinkat(const char *target, int dirfd, const char *path)
{
    NAMING(dirfd, path, syscall(SYS_symlinkat, target, dirfd, path),
           note('L', 3, place.directory, inode_at(&place), 0, NAME, target, strlen(target));)
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int linkat(int from_fd, const char *from, int dirfd, const char *path, int flags)
{
    NAMING(dirfd, path, syscall(SYS_linkat, from_fd, from, dirfd, path, flags),
           note('L', 0, place.directory, inode_at(&place), 0, NAME, "", 0);)
}
int link(const char *from, const char *path) { return linkat(AT_FDCWD, from, AT_FDCWD, path, 0); }

int unlinkat(int dirfd, const char *path, int flags)
{
    NAMING(dirfd, path, syscall(SYS_unlinkat, dirfd, path, flags), note('U', 0, place.directory, 0, 0, NAME, "", 0);)
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    struct place target = place_of(to_fd, to);
    struct place place = place_of(from_fd, from);
    if (!place.is_ours && !target.is_ours) {
        done(&place), done(&target);
        return syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    }
    if (struck('N')) {
        done(&place), done(&target);
        return -1;
    }
    enter();
    uint64_t inode = inode_at(&place);
    int result = syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (result == 0)
        note(flags || !place.is_ours || !target.is_ours ? 'X' : 'R', 0, place.directory, inode, target.directory, NAME,
             target.name, strlen(target.name));
    leave();
    done(&place), done(&target);
    return result;
}
int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return renameat2(from_fd, from, to_fd, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
