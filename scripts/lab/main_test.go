package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

func TestMain(m *testing.M) {
	PlayRole()
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// built is the gateway under test, built once a run.
var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// mailweir returns the mailweir to test: the one that the environment names, or one built here.
func mailweir(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("MAILWEIR_BINARY"); p != "" {
		return p
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "mailweir-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "mailweir")
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", built.path, "./cmd/mailweir")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build mailweir: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}
