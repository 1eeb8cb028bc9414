/* Tries, from inside a container, what its walls must refuse; prints one line a probe:
 *
 *     name TAB refused|allowed TAB detail
 *
 * Runs as any user and needs no files. Each probe is a child of its own, so one that succeeds, or kills, harms
 * neither the container nor the next. Success does no lasting harm: mounts go into a namespace of the child's own if
 * it can have one, and calls that would change the machine get arguments that the kernel rejects only after it has
 * granted the right. Arguments of the program are IPv4 host:port pairs that must not be reachable.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONNECT_MS 300
#define PROBE_SECONDS 5

/* Every probe returns 0 if what it tried was allowed, or -1 and errno. */

/* For calls with deliberately useless arguments: only these errors mean that the right itself was refused. */
static int right(long result)
{
	return result < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS) ? -1 : 0;
}

static int plain(long result)
{
	return result < 0 ? -1 : 0;
}

static int child(long pid)
{
	if (pid == 0)
		_exit(0);
	return plain(pid);
}

/* A mount of the probe's must not be seen by the container, should it succeed. */
static int mounts(const char *type, unsigned long flags)
{
	if (!unshare(CLONE_NEWNS))
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	if (mount("/", "/proc", type, flags, NULL))
		return -1;
	umount2("/proc", MNT_DETACH);
	return 0;
}

static int mount_tmpfs(void) { return mounts("tmpfs", 0); }
static int mount_proc(void) { return mounts("proc", 0); }
static int mount_bind(void) { return mounts(NULL, MS_BIND); }
static int mount_api(void) { return plain(syscall(SYS_fsopen, "tmpfs", 0)); }
static int umount_proc(void) { return right(umount2("/proc", MNT_EXPIRE)); }
static int pivot(void) { return right(syscall(SYS_pivot_root, "/", "/")); }
static int new_user(void) { return plain(unshare(CLONE_NEWUSER)); }
static int new_mount(void) { return plain(unshare(CLONE_NEWNS)); }
static int new_network(void) { return plain(unshare(CLONE_NEWNET)); }
static int new_pid(void) { return plain(unshare(CLONE_NEWPID)); }
static int clone_user(void) { return child(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)); }

static int clone3_user(void)
{
	struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };

	return child(syscall(SYS_clone3, &args, sizeof args));
}

static int join_init(void)
{
	int fd = open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -1 : plain(setns(fd, 0));
}

static int trace_init(void)
{
	return plain(ptrace(PTRACE_SEIZE, 1, 0, 0)); /* ends with this child: PID 1 is never stopped */
}

static int module_init(void) { return right(syscall(SYS_init_module, NULL, 0, "")); }
static int module_file(void) { return right(syscall(SYS_finit_module, -1, "", 0)); }
static int key_add(void) { return plain(syscall(SYS_add_key, "user", "probe", "x", 1, KEY_SPEC_PROCESS_KEYRING)); }
static int key_control(void) { return plain(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1)); }

static int bpf_map(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1 };

	return plain(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

static int perf(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK };

	return plain(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int fault_handling(void) { return plain(syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */)); }

static int io_ring(void)
{
	char parameters[256] = "";

	return plain(syscall(SYS_io_uring_setup, 1, parameters));
}

static int file_handle(void)
{
	struct { unsigned int bytes; int type; char data[8]; } handle = { 8, 1, "" };

	return right(syscall(SYS_open_by_handle_at, open("/", O_RDONLY | O_CLOEXEC), &handle, O_RDONLY));
}

static int kexec(void) { return right(syscall(SYS_kexec_load, 0, 0, NULL, 0xffffUL)); }
static int restart(void) { return right(syscall(SYS_reboot, 0, 0, 0, NULL)); }
static int swap(void) { return right(syscall(SYS_swapon, NULL, 0)); }
static int accounting(void) { return right(syscall(SYS_acct, "/")); }
static int clock_set(void) { return right(syscall(SYS_settimeofday, NULL, NULL)); }
static int kernel_log(void) { return right(syscall(SYS_syslog, 10 /* SYSLOG_ACTION_SIZE_BUFFER */, NULL, 0)); }

static int io_ports(void)
{
#ifdef SYS_iopl
	return plain(syscall(SYS_iopl, 3));
#else
	errno = ENOSYS;
	return -1;
#endif
}

/* Making the node may be allowed (CAP_MKNOD); what counts is that it opens no device. */
static int block_node(void)
{
	static const char *const places[] = { "/dev/shm/.probe", "/tmp/.probe", "/.probe" };
	int result = -1;

	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		for (int major = 8; major <= 254; major += 246) { /* sd*, the usual virtio-blk */
			if (mknod(places[i], S_IFBLK | 0600, makedev(major, 0)))
				continue;
			int fd = open(places[i], O_RDONLY | O_CLOEXEC), error = errno;
			unlink(places[i]);
			errno = error;
			if (fd >= 0 || error == ENXIO) /* no such device, but the right to open it */
				return 0;
		}
	}
	return result;
}

/* The classic: chroot into a directory while standing outside it, then climb. Must end in the container's own root. */
static int chroot_escape(void)
{
	struct stat before, after;

	if (stat("/", &before) || chdir("/") || chroot("/proc/self"))
		return -1;
	for (int i = 0; i < 64; i++)
		if (chdir(".."))
			break;
	if (chroot(".") || stat("/", &after))
		return -1;
	errno = EXDEV;
	return before.st_dev == after.st_dev && before.st_ino == after.st_ino ? -1 : 0;
}

static int cgroup_make(void)
{
	int result = plain(mkdir("/sys/fs/cgroup/.probe", 0755));

	if (!result)
		rmdir("/sys/fs/cgroup/.probe");
	return result;
}

static int connects(int fd, const void *address, socklen_t size)
{
	struct pollfd ready = { .fd = fd, .events = POLLOUT };
	int error = 0;
	socklen_t length = sizeof error;

	if (fd < 0 || (connect(fd, address, size) && errno != EINPROGRESS))
		return -1;
	errno = ETIMEDOUT;
	if (poll(&ready, 1, CONNECT_MS) != 1 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length))
		return -1;
	errno = error;
	return error ? -1 : 0;
}

static int vsock(unsigned int cid)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = 1024 };

	return connects(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), &address, sizeof address);
}

static int vsock_host(void) { return vsock(VMADDR_CID_HOST); }
static int vsock_local(void) { return vsock(VMADDR_CID_LOCAL); }

static const struct {
	const char *name;
	int (*run)(void);
} calls[] = {
	{ "mount-tmpfs", mount_tmpfs }, { "mount-proc", mount_proc }, { "mount-bind", mount_bind },
	{ "mount-api", mount_api }, { "umount", umount_proc }, { "pivot-root", pivot },
	{ "unshare-user", new_user }, { "unshare-mount", new_mount }, { "unshare-network", new_network },
	{ "unshare-pid", new_pid }, { "clone-user", clone_user }, { "clone3-user", clone3_user },
	{ "setns", join_init }, { "ptrace", trace_init }, { "init-module", module_init },
	{ "finit-module", module_file }, { "add-key", key_add }, { "keyctl", key_control }, { "bpf", bpf_map },
	{ "perf-event", perf }, { "userfaultfd", fault_handling }, { "io-uring", io_ring },
	{ "open-by-handle", file_handle }, { "kexec", kexec }, { "reboot", restart }, { "swapon", swap },
	{ "acct", accounting }, { "settimeofday", clock_set }, { "syslog", kernel_log }, { "iopl", io_ports },
	{ "block-device-node", block_node }, { "chroot-escape", chroot_escape }, { "cgroup-create", cgroup_make },
	{ "vsock-host", vsock_host }, { "vsock-local", vsock_local },
};

/* Paths (patterns) that must not open; a masked one (an empty directory, or /dev/null in its place) counts as refused. */
static const struct {
	const char *path;
	int flags;
} files[] = {
	{ "/proc/sysrq-trigger", O_WRONLY }, { "/proc/sys/kernel/core_pattern", O_WRONLY },
	{ "/proc/sys/kernel/modprobe", O_WRONLY }, { "/proc/sys/vm/panic_on_oom", O_WRONLY },
	{ "/proc/kcore", O_RDONLY }, { "/proc/keys", O_RDONLY },
	{ "/proc/timer_list", O_RDONLY }, { "/proc/acpi", O_RDONLY }, { "/proc/scsi", O_RDONLY },
	{ "/sys/firmware", O_RDONLY }, { "/sys/kernel/security/lockdown", O_WRONLY },
	{ "/sys/kernel/uevent_helper", O_WRONLY }, { "/dev/mem", O_RDONLY }, { "/dev/port", O_RDONLY },
	{ "/dev/kmsg", O_RDONLY }, { "/dev/kvm", O_RDWR }, { "/dev/fuse", O_RDWR }, { "/dev/vsock", O_RDONLY },
	{ "/dev/vport*", O_RDWR }, { "/dev/virtio-ports/*", O_RDWR }, { "/dev/vd*", O_RDONLY },
	{ "/dev/sd*", O_RDONLY }, { "/dev/dm-*", O_RDONLY }, { "/dev/loop*", O_RDONLY },
};

static int open_one(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat status;
	char entries[1024];

	if (fd < 0 || fstat(fd, &status))
		return -1;
	errno = ENODATA;
	if (S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3))
		return -1;
	/* "." and ".." take 48 bytes */
	if (S_ISDIR(status.st_mode) && syscall(SYS_getdents64, fd, entries, sizeof entries) <= 48)
		return -1;
	return 0;
}

static int open_file(size_t which)
{
	glob_t found;
	int result = -1;

	errno = ENOENT;
	if (glob(files[which].path, 0, NULL, &found))
		return -1;
	for (size_t i = 0; i < found.gl_pathc && result; i++)
		result = open_one(found.gl_pathv[i], files[which].flags);
	return result;
}

static int reach(const char *pair)
{
	char host[64] = "";
	const char *colon = strrchr(pair, ':');
	struct sockaddr_in address = { .sin_family = AF_INET };

	errno = EINVAL;
	if (!colon || (size_t)(colon - pair) >= sizeof host)
		return -1;
	memcpy(host, pair, colon - pair);
	address.sin_port = htons(atoi(colon + 1));
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		return -1;
	return connects(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), &address, sizeof address);
}

/* Runs one probe in a child, whose exit status is the errno, 0 when it was allowed. */
static void probe(const char *prefix, const char *name, int (*call)(void), size_t file, const char *address)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(PROBE_SECONDS);
		errno = EPERM;
		int result = call ? call() : address ? reach(address) : open_file(file);
		_exit(result ? errno & 0xff : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		printf("%s%s\tallowed\tcould not be tried: %s\n", prefix, name, strerrorname_np(errno));
	else if (WIFSIGNALED(status))
		printf("%s%s\trefused\tkilled by signal %d\n", prefix, name, WTERMSIG(status));
	else if (WEXITSTATUS(status) == 0)
		printf("%s%s\tallowed\t\n", prefix, name);
	else
		printf("%s%s\trefused\t%s\n", prefix, name, strerrorname_np(WEXITSTATUS(status)));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		probe("", calls[i].name, calls[i].run, 0, NULL);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		probe("open:", files[i].path, NULL, i, NULL);
	for (int i = 1; i < argc; i++)
		probe("connect:", argv[i], NULL, 0, argv[i]);
	return 0;
}
