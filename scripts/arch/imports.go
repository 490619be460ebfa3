package arch

import (
	"fmt"
	"slices"
	"strings"
)

// floors gives each package its floor; a package imports lower floors only. A name that ends in a slash stands for
// every package below it.
func floors() []struct {
	floor int
	names []string
} {
	return []struct {
		floor int
		names []string
	}{
		{0, []string{"inspect", "proxy/dot", "proxy/smtpwire", "proxy/imapwire", "proxy/sasl", "certs", "certs/trust", "divert"}},
		{10, []string{"inspect/spool", "inspect/mimetree", "inspect/unpack", "inspect/engine/builtin",
			"inspect/engine/clamd", "inspect/quarantine", "tlsunwrap", "proxy"}},
		{20, []string{"inspect/repack", "inspect/inspecttest", "proxy/proxytest", "tlsunwrap/tlstest"}},
		{25, []string{"inspect/maild"}},
		{30, []string{"proxy/smtp", "proxy/pop3", "proxy/imap"}},
		{40, []string{"cmd/internal/config"}},
		{42, []string{"cmd/internal/control"}},
		{45, []string{"cmd/internal/gateway", "scripts/lab/corpus"}},
		{50, []string{"cmd/mailweir", "scripts/lab", "scripts/arch", "scripts/conformance"}},
		{60, []string{"scripts/"}},
	}
}

// floorOf returns the floor of a package directory.
func floorOf(dir string) (int, bool) {
	for _, f := range floors() {
		for _, name := range f.names {
			if dir == name || strings.HasSuffix(name, "/") && strings.HasPrefix(dir, name) {
				return f.floor, true
			}
		}
	}
	return 0, false
}

// arrow forbids imports whatever the floors say. Patterns are package directories; one that ends in "/..." stands for
// the package and everything below it.
type arrow struct {
	from, to []string
	why      string
}

func forbidden() []arrow {
	doors := []string{"proxy/smtp", "proxy/pop3", "proxy/imap", "proxy/milter", "proxy/spamd", "proxy/rspamd"}
	core := []string{"inspect/..."}
	pure := []string{"proxy/dot", "proxy/smtpwire", "proxy/imapwire", "inspect/mimetree", "inspect/unpack"}
	return []arrow{
		{doors, []string{"inspect/mimetree", "inspect/unpack", "inspect/engine/...", "inspect/quarantine",
			"inspect/repack", "inspect/maild", "inspect/rules", "inspect/hook"},
			"a door knows the core by package inspect and inspect/spool only"},
		{core, []string{"proxy/...", "divert", "tlsunwrap", "certs/..."}, "the core does not know doors, diverts or TLS"},
		{[]string{"tlsunwrap"}, []string{"certs/..."}, "tlsunwrap takes a Minter"},
		{append(doors, "proxy"), []string{"divert", "certs/..."}, "doors take connections and a Dialer"},
		{[]string{"divert"}, []string{"proxy/...", "inspect/..."}, "divert brings connections and knows nothing of mail"},
		{pure, pure, "what only turns bytes into values stands alone"},
	}
}

// silent names the packages that open nothing and log nothing, and what they must not import of the standard library.
func silent() (dirs, std []string) {
	return []string{"proxy/dot", "proxy/smtpwire", "proxy/imapwire", "inspect/mimetree", "inspect/unpack"},
		[]string{"net", "context", "log", "log/slog", "os/exec", "net/http"}
}

// owners says which packages may import a library.
func owners() []struct {
	library string
	dirs    []string
} {
	return []struct {
		library string
		dirs    []string
	}{
		{"github.com/google/nftables", []string{"divert"}},
		{"github.com/vishvananda/netlink", []string{"divert"}},
		{"github.com/vishvananda/netns", []string{"divert"}},
		{"github.com/mdlayher/netlink", []string{"divert"}},
		{"github.com/florianl/go-nfqueue", []string{"divert"}},
		{"modernc.org/sqlite", []string{"inspect/quarantine"}},
		{"database/sql", []string{"inspect/quarantine"}},
		{"github.com/yeka/zip", []string{"inspect/repack"}},
		{"github.com/smallstep/truststore", []string{"certs/trust"}},
		{"github.com/alecthomas/kong", []string{"cmd/..."}},
		{"github.com/coreos/go-systemd", []string{"cmd/..."}},
	}
}

// matches reports whether a package directory falls under one of the patterns.
func matches(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		below, deep := strings.CutSuffix(p, "/...")
		return dir == below || deep && strings.HasPrefix(dir, below+"/")
	})
}

// arrows complains about imports of this module's own packages.
func arrows(f *file) (bad []Complaint) {
	complain := func(i imported, format string, a ...any) {
		bad = append(bad, Complaint{f.name, i.line, fmt.Sprintf(format, a...)})
	}
	from, known := floorOf(f.dir)
	if !known {
		return []Complaint{{f.name, 1, fmt.Sprintf("package %s has no floor: give it one in docs/architecture.md and scripts/arch", f.dir)}}
	}
	for _, i := range f.imports {
		dir, own := i.own()
		if !own {
			continue
		}
		to, known := floorOf(dir)
		switch {
		case !known:
			complain(i, "imports %s, which has no floor", dir)
		case to >= from:
			complain(i, "imports %s: %s stands on floor %d and may import lower floors only, not floor %d", dir, f.dir, from, to)
		case strings.HasSuffix(dir, "test") && !strings.HasPrefix(f.dir, "scripts/"):
			complain(i, "imports %s outside of a test", dir)
		}
		for _, a := range forbidden() {
			if dir != f.dir && matches(f.dir, a.from) && matches(dir, a.to) {
				complain(i, "imports %s: %s", dir, a.why)
			}
		}
	}
	return bad
}

// libraries complains about imports of other people's packages.
func libraries(f *file) (bad []Complaint) {
	dirs, std := silent()
	for _, i := range f.imports {
		if slices.Contains(dirs, f.dir) && slices.Contains(std, i.path) {
			bad = append(bad, Complaint{f.name, i.line, fmt.Sprintf("imports %s: %s neither opens nor logs anything", i.path, f.dir)})
		}
		for _, o := range owners() {
			if (i.path == o.library || strings.HasPrefix(i.path, o.library+"/")) && !matches(f.dir, o.dirs) {
				bad = append(bad, Complaint{f.name, i.line, fmt.Sprintf("imports %s, which belongs to %s", i.path, strings.Join(o.dirs, ", "))})
			}
		}
	}
	return bad
}
