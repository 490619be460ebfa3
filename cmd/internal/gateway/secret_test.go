package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"mailweir/cmd/internal/control"

	"golang.org/x/sys/unix"
)

const coreRole = "GATEWAY_TEST_CORE"

// TestT048 lets a gateway die by SIGABRT where core dumps are allowed, and looks for the authority's key in whatever is
// left, in its log and in its heap profile.
func TestT048(t *testing.T) {
	if dir := os.Getenv(coreRole); dir != "" {
		dieOfAbort(t, dir, os.Getenv(coreRole+"_HARD") == "yes")
		return
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: limit.Max, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Error(err)
		}
	})
	t.Run("control: a process that is not hardened", func(t *testing.T) {
		dir := t.TempDir()
		state, out := runCore(t, dir, false)
		if !state.CoreDump() {
			t.Skipf("core dumps are not to be had on this machine (limit %d): %s", limit.Max, out[:min(len(out), 200)])
		}
	})
	t.Run("the gateway", func(t *testing.T) {
		dir := t.TempDir()
		state, out := runCore(t, dir, true)
		if !state.Signaled() || state.Signal() != syscall.SIGABRT || !strings.Contains(out, "core limit 0, dumpable 0") {
			t.Fatalf("ended otherwise: %v\n%s", state, out)
		}
		if state.CoreDump() {
			t.Error("a core was dumped")
		}
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range left {
			if strings.Contains(f.Name(), "core") {
				t.Errorf("%s is left", f.Name())
			}
		}
		// Go's own trace of all goroutines, the log and the heap profile hold no key.
		profile, err := os.Open(filepath.Join(dir, "heap"))
		if err != nil {
			t.Fatal(err)
		}
		defer profile.Close()
		z, err := gzip.NewReader(profile)
		if err != nil {
			t.Fatal(err)
		}
		heap, err := io.ReadAll(z)
		if err != nil || !bytes.Contains(heap, []byte("mailweir")) {
			t.Fatalf("this is no heap profile: %v", err)
		}
		for _, name := range []string{"ca.key", "untrusted.key"} {
			file, err := os.ReadFile(filepath.Join(dir, "state", "authority", name))
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(filepath.Join(dir, "state", "authority", name)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
			}
			for _, form := range keyForms(t, file) {
				if strings.Contains(out, form) || bytes.Contains(heap, []byte(form)) {
					t.Errorf("%s has left its file", name)
				}
			}
		}
	})
}

// keyForms returns the forms in which the private key of a PEM file might be seen: its octets, hexadecimal, base64 and
// the lines of the file.
func keyForms(t *testing.T, file []byte) (forms []string) {
	t.Helper()
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		if !strings.Contains(block.Type, "PRIVATE KEY") {
			continue
		}
		// The scalar of a P-256 key is an OCTET STRING of 32 octets (RFC 5915 §3).
		at := bytes.Index(block.Bytes, []byte{0x02, 0x01, 0x01, 0x04, 0x20})
		if at < 0 {
			t.Fatalf("no P-256 key in %s", block.Type)
		}
		scalar := block.Bytes[at+5 : at+37]
		encoded := base64.StdEncoding.EncodeToString(block.Bytes)
		forms = append(forms, string(scalar), hex.EncodeToString(scalar), base64.StdEncoding.EncodeToString(scalar), encoded[:64], encoded[64:128])
	}
	if len(forms) == 0 {
		t.Fatal("there is no private key")
	}
	return forms
}

// runCore runs this test again in dir and returns how that process ended, and what it wrote.
func runCore(t *testing.T, dir string, hard bool) (syscall.WaitStatus, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestT048$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), coreRole+"="+dir, "GOTRACEBACK=crash")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if hard {
		cmd.Env = append(cmd.Env, coreRole+"_HARD=yes")
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skipf("no network namespace: %v", err)
	}
	return cmd.ProcessState.Sys().(syscall.WaitStatus), string(out)
}

// dieOfAbort is the other process: a gateway, once it runs, gets SIGABRT.
func dieOfAbort(t *testing.T, dir string, hard bool) {
	if !hard {
		abort(t)
	}
	loopbackUp(t)
	path := filepath.Join(dir, "m.ini")
	text := fmt.Sprintf("[Root]\nStateDir = %[1]s/state\nSpoolDir = %[1]s/spool\nControlSocket = %[1]s/c\nLog = Stderr\nDefaultLogLevel = Debug\n"+
		"[LinuxFirewall]\nUnwrapSsl = Yes\n", dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Run(context.Background(), Config{Path: path, Stderr: os.Stderr}) }()
	client := control.Client{Path: filepath.Join(dir, "c")}
	for {
		if s, err := client.Stat(context.Background()); err == nil && s.Divert.Active {
			break
		}
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	f, err := os.Create(filepath.Join(dir, "heap"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pprof.WriteHeapProfile(f); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("core limit %d, dumpable %d\n", limit.Max, dumpable)
	abort(t)
}

func abort(t *testing.T) {
	if err := unix.Kill(os.Getpid(), unix.SIGABRT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute) // it does not come to that
}
