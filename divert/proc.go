package divert

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// localProgram returns the path of the program that has the socket with these two addresses open. Processes of the
// socket's owner are looked at first; those that we may not look into are passed over.
func localProgram(local, remote netip.AddrPort) (string, error) {
	s, err := find(local, remote)
	if err != nil {
		return "", err
	}
	if s.inode == 0 {
		return "", fmt.Errorf("find program of %v: the socket is closed", local)
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("list processes: %w", err)
	}
	// The newest first: a program that has just opened a connection has often just been started for it.
	dirs = slices.DeleteFunc(dirs, func(d os.DirEntry) bool { return pid(d) == 0 })
	slices.SortFunc(dirs, func(a, b os.DirEntry) int { return pid(b) - pid(a) })
	var others []string
	for _, d := range dirs {
		path := filepath.Join("/proc", d.Name())
		info, err := d.Info()
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != s.uid {
			others = append(others, path)
			continue
		}
		if exe, ok := holder(path, s.inode); ok {
			return exe, nil
		}
	}
	for _, path := range others {
		if exe, ok := holder(path, s.inode); ok {
			return exe, nil
		}
	}
	return "", fmt.Errorf("find program of %v: no process has socket %d open", local, s.inode)
}

func pid(d os.DirEntry) int {
	n, _ := strconv.Atoi(d.Name())
	return n
}

// holder says whether the process has the socket open, and what program it runs.
func holder(proc string, inode uint32) (exe string, ok bool) {
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return "", false
	}
	for _, fd := range fds {
		if link, err := os.Readlink(proc + "/fd/" + fd.Name()); err != nil || link != want {
			continue
		}
		exe, err := os.Readlink(proc + "/exe")
		if err != nil {
			return "", false
		}
		return strings.TrimSuffix(exe, " (deleted)"), true
	}
	return "", false
}

// excluded says whether the program at path is one of those that are not diverted. A configured path may be a
// symbolic link.
func excluded(list []string, path string) bool {
	if path == "" {
		return false // unable to tell: it is diverted
	}
	for _, e := range list {
		if e == path {
			return true
		}
		if real, err := filepath.EvalSymlinks(e); err == nil && real == path {
			return true
		}
	}
	return false
}
