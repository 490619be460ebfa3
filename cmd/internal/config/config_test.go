package config

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the files that are made from the settings, and expected errors")

// TestBadSettings reads every file of testdata/bad and compares the error with the one beside it.
func TestBadSettings(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.ini")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 40 {
		t.Fatalf("only %d bad files", len(files))
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".ini"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := "no error\n"
			f, err := ParseFile(filepath.Base(path), data)
			if err == nil {
				_, err = NewTable().Read(f)
			}
			if err != nil {
				got = err.Error() + "\n"
			}
			golden(t, strings.TrimSuffix(path, ".ini")+".err", got)
			if err == nil {
				t.Error("the file is taken for good")
			}
		})
	}
}

// TestReference compares the reference page with the settings.
func TestReference(t *testing.T) {
	var b bytes.Buffer
	if err := NewTable().Markdown(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../docs/reference/settings.md", b.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what it should be; go test -update writes it\n--- got\n%s--- want\n%s", path, got, want)
	}
}

// TestTableIsSound looks at what every parameter must have.
func TestTableIsSound(t *testing.T) {
	table := NewTable()
	for i := range table.Params {
		p := &table.Params[i]
		if p.Doc == "" || !strings.HasSuffix(p.Doc, ".") {
			t.Errorf("%s: the doc is no sentence: %q", p.Name(), p.Doc)
		}
		// What cfshow shows must be what cfset takes.
		shown := p.shownDefault(table.typ)
		words := []string{shown}
		if p.List {
			words = splitList(shown)
		}
		if err := p.check(table.typ, words); err != nil {
			t.Errorf("%s: its default is shown as %q, which is refused: %v", p.Name(), shown, err)
		}
	}
	Default()
}

// TestAnnotated reads the annotated example, as it is and with every comment sign before a parameter taken away.
func TestAnnotated(t *testing.T) {
	table := NewTable()
	l, err := table.Read(&File{})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]*Param, len(table.Params))
	for i := range all {
		all[i] = &table.Params[i]
	}
	var b bytes.Buffer
	if err := l.Annotate(&b, all); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, p := range all {
		text = strings.Replace(text, "\n#"+p.Key+" =", "\n"+p.Key+" =", 1)
	}
	f, err := ParseFile("example.ini", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.entries) != len(all) {
		t.Errorf("%d entries for %d parameters", len(f.entries), len(all))
	}
	again, err := table.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if v, changed := again.Value(p); changed {
			t.Errorf("%s has become %q", p.Name(), v)
		}
	}
}

func TestRead(t *testing.T) {
	f, err := ParseFile("x.ini", []byte("\ufeff# c\r\n[linuxfirewall]\r\ninspectsmtp = off ; why\r\nInputDivert = Auto(interface:eth0 protected:25,587) # c\r\n"+
		"INPUTDIVERT = Auto(protected:2525 interface:eth1)\r\n[ROOT]\r\nStateDir=\"/srv/mail weir\"\r\nSpoolQuota = 1gb\r\nDrainTimeout = 1m30s\r\nlog = syslog:mail\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewTable().Read(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"LinuxFirewall.InspectSmtp": "Off",
		"linuxfirewall.inputdivert": "Auto(interface:eth0 protected:25,587), Auto(interface:eth1 protected:2525)",
		"Root.StateDir":             "/srv/mail weir",
		"Root.SpoolQuota":           "1gb",
		"Root.DrainTimeout":         "1m30s",
		"Root.Log":                  "Syslog:mail",
		"Root.SpoolMaxMessage":      "None",
		"LinuxFirewall.InspectImap": "On",
	} {
		p, err := l.Table.Find(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got, _ := l.Value(p); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if _, changed := l.Value(must(l.Table.Find("Root.SpoolMaxMessage"))); changed {
		t.Error("what was not set counts as changed")
	}
}

func must(p *Param, err error) *Param {
	if err != nil {
		panic(err)
	}
	return p
}

func TestNearest(t *testing.T) {
	table := NewTable()
	for _, c := range []struct{ name, want string }{
		{"LinuxFirewall.InputDivrt", "did you mean LinuxFirewall.InputDivert?"},
		{"LinuxFirewal.InputDivert", "did you mean LinuxFirewall?"},
		{"Root.UnwrapSsl", "did you mean LinuxFirewall.UnwrapSsl?"},
		{"UnwrapSsl", "did you mean LinuxFirewall.UnwrapSsl?"},
		{"Root.StateDri", "did you mean Root.StateDir?"},
		{"Frobnicate.X", "the sections are Root, LinuxFirewall, "},
	} {
		_, err := table.Find(c.name)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := table.Find("Root.Frobnicate"); err == nil || strings.Contains(err.Error(), "did you mean") {
		t.Errorf("a far-fetched guess: %v", err)
	}
}

func TestChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.ini")
	ctx := context.Background()
	if _, err := Change(ctx, path, Edit{"root.drainTimeout", Set, "30s"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link.ini")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Change(ctx, link, Edit{"LinuxFirewall.InspectSmtp", Set, "Off"}, nil); err != nil {
		t.Fatal(err)
	}
	want := "[Root]\nDrainTimeout = 30s\n\n[LinuxFirewall]\nInspectSmtp = Off\n"
	check := func() {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	check()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the symbolic link was replaced")
	}

	// A bad value is not written, and neither is one that cannot be applied.
	if _, err := Change(ctx, path, Edit{"Root.DrainTimeout", Set, "30"}, nil); err == nil ||
		err.Error() != `Root.DrainTimeout: "30" has no unit; write 30s, 30m, 30h or 30d` {
		t.Errorf("got %v", err)
	}
	check()
	broken := errors.New("no kernel today")
	if _, err := Change(ctx, path, Edit{"Root.DrainTimeout", Set, "40s"}, func(*Loaded) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	check()
	fresh := filepath.Join(t.TempDir(), "new.ini")
	if _, err := Change(ctx, fresh, Edit{"Root.DrainTimeout", Set, "40s"}, func(*Loaded) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that could not be applied has stayed: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// TestChangesAtOnce makes changes from several sides at one time: none is lost.
func TestChangesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.ini")
	var wg sync.WaitGroup
	hosts := []string{"a.example", "b.example", "c.example", "d.example", "e.example", "f.example"}
	for _, h := range hosts {
		wg.Go(func() {
			if _, err := Change(context.Background(), path, Edit{"LinuxFirewall.ExcludedProc", Add, "/bin/" + h}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Settings.LinuxFirewall.Divert.ExcludedProc; len(got) != len(hosts) {
		t.Errorf("got %q", got)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.ini")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestNamedSettingsExist looks for Section.Parameter in every text of the project: whoever reads one can set it.
func TestNamedSettingsExist(t *testing.T) {
	const root = "../../.."
	table := NewTable()
	name := regexp.MustCompile(`\b(` + strings.Join(table.Sections, "|") + `)\.([A-Z][A-Za-z0-9]+)\b`)
	found := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && path != root {
				return fs.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); ext != ".md" && ext != "" && ext != ".service" && ext != ".sh" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range name.FindAllString(string(text), -1) {
			found++
			if strings.Contains(string(text), "unknown parameter "+m) {
				continue // an example of what cfset says to a slip
			}
			if _, err := table.Find(m); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 20 {
		t.Errorf("only %d names found", found)
	}
}
