package clamd

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mailweir/inspect"
)

// TestRealClamd asks the true daemon, with a database of one signature.
func TestRealClamd(t *testing.T) {
	program, err := exec.LookPath("clamd")
	if err != nil {
		t.Skip("clamd is not installed")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	conf := fmt.Sprintf("LocalSocket %s\nDatabaseDirectory %s\nTemporaryDirectory %s\nForeground yes\nStreamMaxLength 1M\nAlertEncryptedArchive yes\nMaxThreads 4\n", socket, dir, dir)
	write(t, filepath.Join(dir, "clamd.conf"), conf)
	write(t, filepath.Join(dir, "one.ndb"), "Test.Signature-1:0:*:"+hex.EncodeToString([]byte("a very harmful needle"))+"\n")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--config-file="+filepath.Join(dir, "clamd.conf"))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	e, err := New(Config{Settings: Settings{ClamdSocket: socket}})
	if err != nil {
		t.Fatal(err)
	}
	for e.Ping(ctx) != nil {
		if ctx.Err() != nil {
			t.Skipf("clamd did not start here: %s", log.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
	file := func(content string) inspect.Body {
		f, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		os.Remove(f.Name())
		if _, err := f.WriteString(content); err != nil {
			t.Fatal(err)
		}
		return fileBody{f, int64(len(content))}
	}
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, c := range []struct {
		name string
		body inspect.Body
		want string
	}{
		{"clean stream", inspect.Bytes("nothing"), ""},
		{"bad stream", inspect.Bytes("is a very harmful needle, this"), "Test.Signature-1"},
		{"empty stream", inspect.Bytes(""), ""},
		{"clean descriptor", file("nothing"), ""},
		{"bad descriptor", file("is a very harmful needle, this"), "Test.Signature-1"},
		{"stream over the limit", inspect.Bytes(noise), inspect.Limits},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := e.Inspect(ctx, &inspect.Object{Body: c.body})
			switch {
			case c.want == inspect.Limits:
				if category(err) != inspect.Limits {
					t.Errorf("err = %v", err)
				}
			case err != nil:
				t.Error(err)
			case c.want == "" && found != nil, c.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0].Name, c.want)):
				t.Errorf("found %v", found)
			}
		})
	}
	t.Run("killed", func(t *testing.T) {
		cmd.Process.Kill()
		cmd.Wait()
		for range 2 {
			if _, err := e.Inspect(ctx, &inspect.Object{Body: inspect.Bytes("x")}); category(err) != inspect.Unavailable {
				t.Errorf("err = %v", err)
			}
		}
	})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
