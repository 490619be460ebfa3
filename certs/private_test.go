package certs

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestT081 has another user of the machine look at the files.
func TestT081(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	dir, err := os.MkdirTemp("", "mailweir-certs-*") // t.TempDir's parents are closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "gw.test"); err != nil {
		t.Fatal(err)
	}
	readable := func(name string) bool {
		cmd := exec.Command("cat", filepath.Join(dir, name))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return cmd.Run() == nil
	}
	if !readable(certFile) {
		t.Skip("another user cannot even read the public certificate here")
	}
	for _, name := range []string{keyFile, untrustedFile} {
		if readable(name) {
			t.Errorf("T-081: another user reads %s", name)
		}
	}
}
