package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// killWait kills a process that need not be our child and waits, a little, until it is gone.
func killWait(pid int) {
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return
	}
	for range 100 {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Resident returns the resident memory of a process in octets.
func Resident(pid int) (int64, error) { return statusKiB(pid, "VmRSS") }

// PeakResident returns the highest resident memory that a process has had.
func PeakResident(pid int) (int64, error) { return statusKiB(pid, "VmHWM") }

// Files returns how many file descriptors a process has open.
func Files(pid int) (int, error) {
	d, err := os.ReadDir(procPath(pid, "fd"))
	return len(d), err
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

func statusKiB(pid int, field string) (int64, error) {
	text, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return 0, fmt.Errorf("read status: %w", err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// CPU returns the processor time that a process has used.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0, fmt.Errorf("read stat: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("process %d has a short stat", pid)
	}
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}
