/* /init of the initramfs: opens the verified root file system and hands over to it.
 *
 * It holds the kernel modules that are needed to do so (in /modules, loaded in name order) and nothing else.
 * The root disk is the block device whose serial number is "hybrid-root": a file system followed by its dm-verity
 * hash tree. What makes it trustworthy comes on the kernel command line, which the host sets:
 *
 *     hybrid.roothash=HEX     root of the hash tree (sha256, 4096-byte blocks, no salt, no superblock)
 *     hybrid.hashoffset=N     byte offset of the hash tree = size of the file system
 *
 * Any failure is fatal: the kernel panics when init ends (and the machine stops, as the command line says).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096ULL
#define SECTOR 512ULL
#define WAIT_STEPS 6000 /* of 5 ms: 30 s, generous for a slow emulated machine */

static void die(const char *what)
{
	printf("hybrid: cannot start: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	exit(1);
}

/* Reads a small file into buffer, without its final newline; -1 if it can't be read. */
static int slurp(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buffer, size - 1);

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return -1;
	buffer[n] = 0;
	if (n > 0 && buffer[n - 1] == '\n')
		buffer[n - 1] = 0;
	return 0;
}

static void load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, NULL, alphasort);

	if (count < 0)
		die("/modules");
	if (chdir("/modules"))
		die("/modules");
	for (int i = 0; i < count; i++) {
		if (names[i]->d_name[0] == '.')
			continue;
		int fd = open(names[i]->d_name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			die(names[i]->d_name);
		close(fd);
		unlink(names[i]->d_name);
	}
	if (chdir("/"))
		die("/");
}

/* The value of key= on the kernel command line. */
static void argument(const char *key, char *value, size_t size)
{
	static char line[4096];
	size_t length = strlen(key);

	if (slurp("/proc/cmdline", line, sizeof line))
		die("/proc/cmdline");
	for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) {
		if (!strncmp(word, key, length) && strlen(word + length) < size) {
			strcpy(value, word + length);
			return;
		}
	}
	errno = ENOENT;
	die(key);
}

static int is_root(const char *name)
{
	char path[300], serial[64];

	snprintf(path, sizeof path, "/sys/block/%s/serial", name);
	return !slurp(path, serial, sizeof serial) && !strcmp(serial, "hybrid-root");
}

/* Waits for the root disk: the controller's probe may still be under way. */
static void find_root(char *device, size_t size)
{
	for (int step = 0; step < WAIT_STEPS; step++) {
		DIR *dir = opendir("/sys/block");
		for (struct dirent *entry; dir && (entry = readdir(dir));) {
			if (is_root(entry->d_name)) {
				snprintf(device, size, "/dev/%s", entry->d_name);
				closedir(dir);
				return;
			}
		}
		if (dir)
			closedir(dir);
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	}
	errno = ENODEV;
	die("disk hybrid-root");
}

static void device_mapper(int control, unsigned long request, struct dm_ioctl *header, const char *what)
{
	header->version[0] = DM_VERSION_MAJOR;
	header->flags |= DM_READONLY_FLAG;
	strcpy(header->name, "hybrid-root");
	if (ioctl(control, request, header))
		die(what);
}

/* Maps the verified view of disk as /dev/dm-0. A block that does not match the tree stops the machine. */
static void open_verity(const char *disk)
{
	char hash[65], offset[24];
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	struct {
		struct dm_ioctl header;
		struct dm_target_spec target;
		char parameters[1024];
	} table = { 0 };
	struct dm_ioctl create = { .data_size = sizeof create }, resume = { .data_size = sizeof resume };

	if (control < 0)
		die("/dev/mapper/control");
	argument("hybrid.roothash=", hash, sizeof hash);
	argument("hybrid.hashoffset=", offset, sizeof offset);
	unsigned long long size = strtoull(offset, NULL, 10), blocks = size / BLOCK;

	device_mapper(control, DM_DEV_CREATE, &create, "create the verity device");
	table.header.data_size = sizeof table;
	table.header.data_start = offsetof(typeof(table), target);
	table.header.target_count = 1;
	table.target.length = size / SECTOR;
	strcpy(table.target.target_type, "verity");
	snprintf(table.parameters, sizeof table.parameters,
		 "1 %s %s %llu %llu %llu %llu sha256 %s - 1 panic_on_corruption", disk, disk, BLOCK, BLOCK, blocks, blocks,
		 hash);
	device_mapper(control, DM_TABLE_LOAD, &table.header, "load the verity table");
	device_mapper(control, DM_DEV_SUSPEND, &resume, "activate the verity device");
	close(control);
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	if (mount(source, target, type, flags, data))
		die(target);
}

int main(void)
{
	char disk[300];
	static const char *const moved[] = { "/dev", "/proc", "/sys" };
	char target[64];

	must_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755");
	must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	load_modules();
	find_root(disk, sizeof disk);
	open_verity(disk);
	must_mount("/dev/dm-0", "/root", "squashfs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL);
	for (int i = 0; i < 3; i++) {
		snprintf(target, sizeof target, "/root%s", moved[i]);
		must_mount(moved[i], target, NULL, MS_MOVE, NULL);
	}
	unlink("/init"); /* the initramfs is memory: leave nothing in it */
	if (chdir("/root"))
		die("/root");
	must_mount(".", "/", NULL, MS_MOVE, NULL);
	if (chroot(".") || chdir("/"))
		die("switch to the root file system");
	execl("/usr/lib/hybrid/init", "init", (char *)NULL);
	die("/usr/lib/hybrid/init");
}
