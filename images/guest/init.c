/* PID 1 of the guest: mounts what the kernel offers, applies the static sysctls, loads the kernel modules, runs the
 * agent, reaps orphans.
 *
 * The guest exists for its agent: when the agent ends, for whatever reason, a line on the console says so and the
 * machine powers off. The guest has no identity here; all of it comes over the agent's link later.
 * /dev, /proc and /sys are mounted by the initramfs already.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "hybrid.agent"
#define VSOCK_PORT "1024"
#define SYSCTLS "/usr/lib/hybrid/sysctl.conf"
#define MODULES "/usr/lib/hybrid/modules" /* paths, in an order in which they can be loaded */
#define VSOCK_CID_FIRST 3 /* 0 hypervisor, 1 local, 2 host: a guest's own is above */
#define WAIT_STEPS 3000   /* of 10 ms: 30 s for the link's device to appear */

static const struct {
	const char *type, *target;
	unsigned long flags;
	const char *data;
} mounts[] = {
	{ "securityfs", "/sys/kernel/security", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	{ "cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate" },
	{ "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5" },
	{ "tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=1m" },
	{ "tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755" },
	{ "tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777" },
};

static _Noreturn void power_off(void)
{
	fflush(stdout);
	kill(-1, SIGKILL);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void mount_all(void)
{
	for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
		mkdir(mounts[i].target, 0755); /* below /dev: made by nobody else */
		if (mount(mounts[i].type, mounts[i].target, mounts[i].type, mounts[i].flags, mounts[i].data)) {
			printf("hybrid: cannot mount %s: %s\n", mounts[i].target, strerror(errno));
			power_off();
		}
	}
}

/* One "name = value" a line, # starts a comment. A sysctl this kernel lacks is named and passed over. */
static void apply_sysctls(void)
{
	char line[512], path[300];
	FILE *file = fopen(SYSCTLS, "re");

	while (file && fgets(line, sizeof line, file)) {
		char name[200], value[200] = "";
		line[strcspn(line, "#\n")] = 0;
		if (sscanf(line, " %199[a-zA-Z0-9_.-] = %199[^\n]", name, value) < 1)
			continue;
		for (char *c = name; *c; c++)
			*c = *c == '.' ? '/' : *c;
		snprintf(path, sizeof path, "/proc/sys/%s", name);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		strcat(value, "\n"); /* an empty value is set by an empty line */
		if (fd < 0 || write(fd, value, strlen(value)) < 0)
			printf("hybrid: sysctl %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (file)
		fclose(file);
}

/* Later than this the agent lets nobody load any. */
static void load_modules(void)
{
	char path[512];
	FILE *file = fopen(MODULES, "re");

	while (file && fgets(path, sizeof path, file)) {
		path[strcspn(path, "\n")] = 0;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) {
			printf("hybrid: cannot load %s: %s\n", path, strerror(errno));
			power_off();
		}
		close(fd);
	}
	if (file)
		fclose(file);
}

/* Whether the host gave this guest a virtio-serial port for the agent. */
static int have_port(void)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	int found = 0;

	for (struct dirent *entry; dir && !found && (entry = readdir(dir));) {
		char path[300], name[64] = "";
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		FILE *file = fopen(path, "re");
		if (file) {
			found = fgets(name, sizeof name, file) && !strcmp(name, PORT_NAME "\n");
			fclose(file);
		}
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Whether the host gave this guest a vsock address. */
static int have_vsock(void)
{
	unsigned int cid = 0;
	int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
		cid = 0;
	close(fd);
	return cid >= VSOCK_CID_FIRST && cid != VMADDR_CID_ANY;
}

static pid_t start(char *const argv[])
{
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_RDONLY);
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		dup2(null, 0);
		close(null);
		setsid();
		execv(argv[0], argv);
		printf("hybrid: cannot run %s: %s\n", argv[0], strerror(errno));
		fflush(stdout);
		_exit(127);
	}
	return pid;
}

/* The agent's link: "--serial NAME" or "--vsock PORT". */
static void find_link(char **option, char **value)
{
	static char *const modprobe[] = { "/usr/bin/busybox", "modprobe", "vmw_vsock_virtio_transport", NULL };

	for (int step = 0; step < WAIT_STEPS; step++) {
		if (have_port()) {
			*option = "--serial";
			*value = PORT_NAME;
			return;
		}
		if (step == 20) /* no port: perhaps vsock, whose driver is a module */
			waitpid(start(modprobe), NULL, 0);
		if (step >= 20 && have_vsock()) {
			*option = "--vsock";
			*value = VSOCK_PORT;
			return;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	printf("hybrid: the host offers neither the port " PORT_NAME " nor vsock; powering off\n");
	power_off();
}

int main(void)
{
	char *agent[] = { "/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/hybrid/agent.pyz", NULL, NULL, "--guest", NULL };
	sigset_t all;
	int status;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	clearenv();
	setenv("PATH", "/usr/sbin:/usr/bin", 1);
	setenv("LANG", "C.UTF-8", 1);
	setenv("HOME", "/tmp", 1);
	umask(0022);
	mount_all();
	apply_sysctls();
	load_modules();
	find_link(&agent[5], &agent[6]);
	pid_t pid = start(agent);
	for (pid_t ended; (ended = wait(&status)) != pid;)
		if (ended < 0 && errno == ECHILD)
			break;
	if (WIFSIGNALED(status))
		printf("hybrid: the agent was killed by signal %d; powering off\n", WTERMSIG(status));
	else
		printf("hybrid: the agent ended with status %d; powering off\n", WEXITSTATUS(status));
	power_off();
}
