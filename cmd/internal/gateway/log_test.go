package gateway

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"mailweir/cmd/internal/config"
)

func logTo(t *testing.T, text string) config.Log {
	t.Helper()
	var l config.Log
	if err := l.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	stamp := `[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}Z `
	for _, c := range []struct{ name, to, journal, want string }{
		{"auto under systemd", "Auto", "8:1", `^<4>level=WARN msg="a b" conn=1\n<5>level=NOTICE msg=n conn=1\n$`},
		{"auto elsewhere", "Auto", "", `^` + stamp + `level=WARN msg="a b" conn=1\n` + stamp + `level=NOTICE msg=n conn=1\n$`},
		{"stderr", "Stderr", "", `^<4>level=WARN msg="a b" conn=1\n<5>level=NOTICE msg=n conn=1\n$`},
		{"stderr with time", "Stderr:ShowTimestamp", "8:1", `^` + stamp + `level=WARN msg="a b" conn=1\n` + stamp + `level=NOTICE msg=n conn=1\n$`},
		{"file", file, "", `^` + stamp + `level=WARN msg="a b" conn=1\n` + stamp + `level=NOTICE msg=n conn=1\n$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("JOURNAL_STREAM", c.journal)
			var stderr bytes.Buffer
			l, err := newLogs(logTo(t, c.to), "Notice", &stderr)
			if err != nil {
				t.Fatal(err)
			}
			log := l.logger().With("conn", 1)
			log.Warn("a b")
			log.Info("not at this level")
			log.Log(t.Context(), LevelNotice, "n")
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			got := stderr.String()
			if c.to == file {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				got += string(b)
			}
			if !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("got %q, want %s", got, c.want)
			}
		})
	}
}

func TestLogChangesWhileInUse(t *testing.T) {
	var stderr bytes.Buffer
	l, err := newLogs(logTo(t, "Stderr"), "Error", &stderr)
	if err != nil {
		t.Fatal(err)
	}
	log := l.logger().WithGroup("g").With("a", 1)
	log.Info("unheard")
	if err := l.set(logTo(t, filepath.Join(t.TempDir(), "none", "log")), "Debug", &stderr); err == nil {
		t.Error("a log file that cannot be opened is taken")
	}
	log.Info("unheard")
	if err := l.set(logTo(t, "Stderr"), "Debug", &stderr); err != nil {
		t.Fatal(err)
	}
	log.Debug("heard", "b", 2)
	if got := stderr.String(); got != "<7>level=DEBUG msg=heard g.a=1 g.b=2\n" {
		t.Errorf("got %q", got)
	}
	// One line, whatever strangers write.
	stderr.Reset()
	log.Error("x", "from", "a\nb\x1b[2J")
	if got := stderr.String(); strings.Count(got, "\n") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
}
