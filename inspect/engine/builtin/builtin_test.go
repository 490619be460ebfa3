package builtin

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/inspect"
)

func open(t testing.TB, files map[string]string) *Engine {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, dir, name, content)
	}
	e, err := Open(Config{Dir: dir, Poll: -1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func write(t testing.TB, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// atRest hides that a body is in memory, so that it is read in blocks.
type atRest struct{ b inspect.Bytes }

func (r atRest) ReadAt(p []byte, off int64) (int, error) { return r.b.ReadAt(p, off) }
func (r atRest) Size() int64                             { return r.b.Size() }

// names inspects data in memory and read in blocks, wants both to agree, and returns what was found.
func names(t testing.TB, e *Engine, data []byte) []string {
	t.Helper()
	var got [2][]string
	for i, body := range []inspect.Body{inspect.Bytes(data), atRest{data}} {
		found, err := e.Inspect(context.Background(), &inspect.Object{Path: "1/x", Body: body})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Path != "1/x" || f.Engine != "builtin" {
				t.Errorf("finding %+v lacks path or engine", f)
			}
			got[i] = append(got[i], f.Name)
		}
		slices.Sort(got[i])
	}
	if !slices.Equal(got[0], got[1]) {
		t.Fatalf("in memory found %v, in blocks %v", got[0], got[1])
	}
	return got[0]
}

func TestEICAR(t *testing.T) {
	e := open(t, nil)
	test := eicarString()
	if len(test) != 68 {
		t.Fatalf("the test file has %d octets", len(test))
	}
	for _, c := range []struct {
		name, data, detail string
		found              bool
	}{
		{"exact", test, "test file, harmless", true},
		{"white space and ctrl-Z to 128", test + strings.Repeat(" \r\n\x1A", 15), "test file, harmless", true},
		{"longer than 128", test + strings.Repeat(" ", 61), "embedded at octet 0", true},
		{"embedded", "From: a\r\n\r\n" + test + " tail", "embedded at octet 11", true},
		{"far", strings.Repeat("x", 3*blockSize-30) + test, "embedded", true},
		{"one octet other", strings.Replace(test, "STANDARD", "STANDARd", 1), "", false},
		{"cut", test[:67], "", false},
		{"empty", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := e.Inspect(context.Background(), &inspect.Object{Body: inspect.Bytes(c.data)})
			if err != nil {
				t.Fatal(err)
			}
			if !c.found {
				if found != nil {
					t.Errorf("found %v", found)
				}
				return
			}
			if len(found) != 1 || found[0].Kind != inspect.Threat || found[0].Name != "EICAR-Test-File" ||
				found[0].Category != inspect.KnownVirus || !strings.Contains(found[0].Detail, c.detail) {
				t.Errorf("found %+v", found)
			}
		})
	}
}

func TestGTUBE(t *testing.T) {
	found, err := open(t, nil).Inspect(context.Background(), &inspect.Object{Body: inspect.Bytes("Subject: x\r\n\r\n" + gtubeString() + "\r\n")})
	if err != nil || len(found) != 1 || found[0].Kind != inspect.Spam || found[0].Name != "GTUBE" {
		t.Errorf("found %+v, %v", found, err)
	}
}

// TestBlockEdges puts a pattern across every place where two blocks meet.
func TestBlockEdges(t *testing.T) {
	e := open(t, map[string]string{"a.ndb": "Long:0:*:" + hex.EncodeToString([]byte("a rather long run of octets")) +
		"\nShort:0:*:" + hex.EncodeToString([]byte("q#z")) + "\nMid:0:*:" + hex.EncodeToString([]byte("12=45+")) + "\n"})
	for d := -30; d <= 2; d++ {
		data := bytes.Repeat([]byte{'.'}, 2*blockSize+100)
		copy(data[blockSize+d:], "a rather long run of octets")
		copy(data[2*blockSize+d:], "q#z12=45+")
		if got := names(t, e, data); !slices.Equal(got, []string{"Long", "Mid", "Short"}) {
			t.Fatalf("shift %d: found %v", d, got)
		}
	}
}

func TestNDB(t *testing.T) {
	type c struct {
		name, sig, data string
		want            bool
	}
	x := func(s string) string { return hex.EncodeToString([]byte(s)) }
	far := strings.Repeat("-", blockSize)
	for _, c := range []c{
		{"anywhere", "*:" + x("needle"), "hay needle hay", true},
		{"absent", "*:" + x("needle"), "hay needl hay", false},
		{"offset", "4:" + x("needle"), "hay needle hay", true},
		{"wrong offset", "3:" + x("needle"), "hay needle hay", false},
		{"offset with shift", "2,2:" + x("needle"), "hay needle hay", true},
		{"offset beyond shift", "1,2:" + x("needle"), "hay needle hay", false},
		{"second of two at offset", "11:" + x("needle"), "hay needle needle", true},
		{"from the end", "EOF-6:" + x("needle"), "hay needle", true},
		{"not from the end", "EOF-6:" + x("needle"), "hay needle ", false},
		{"from the end with shift", "EOF-8,2:" + x("needle"), "hay needle ", true},
		{"any octet", "*:" + x("nee") + "??" + x("le"), "hay neeXle", true},
		{"low half", "*:" + x("nee") + "?4" + x("le"), "hay needle", true},
		{"low half differs", "*:" + x("nee") + "?5" + x("le"), "hay needle", false},
		{"high half", "*:" + x("nee") + "6?" + x("le"), "hay needle", true},
		{"star", "*:" + x("first") + "*" + x("last"), "first and" + far + "last", true},
		{"star, none between", "*:" + x("first") + "*" + x("last"), "firstlast", true},
		{"star, wrong order", "*:" + x("first") + "*" + x("last"), "last first", false},
		{"star, overlap", "*:" + x("abcd") + "*" + x("cdef"), "abcdef", false},
		{"three parts", "*:" + x("one") + "*" + x("two") + "*" + x("three"), "one two one" + far + "three", true},
		{"three parts, middle late", "*:" + x("one") + "*" + x("two") + "*" + x("three"), "one three two", false},
		{"exact gap", "*:" + x("abc") + "{2}" + x("def"), "abc..def", true},
		{"exact gap missed", "*:" + x("abc") + "{2}" + x("def"), "abc...def", false},
		{"range", "*:" + x("abc") + "{1-3}" + x("def"), "abc...def", true},
		{"range missed", "*:" + x("abc") + "{1-3}" + x("def"), "abc....def", false},
		{"at most", "*:" + x("abc") + "{-3}" + x("def"), "abcdef", true},
		{"at most missed", "*:" + x("abc") + "{-3}" + x("def"), "abc....def", false},
		{"at least", "*:" + x("abc") + "{3-}" + x("def"), "abc" + far + "def", true},
		{"at least missed", "*:" + x("abc") + "{3-}" + x("def"), "abc..def", false},
		{"at least, later", "*:" + x("abc") + "{3-}" + x("def"), "abc..def..def", true},
		{"gap before the window", "*:" + x("ab") + "{-4}" + x("a long run here"), "ab...a long run here", true},
		{"gap before the window missed", "*:" + x("ab") + "{-4}" + x("a long run here"), "ab.....a long run here", false},
		{"two ways through gaps", "*:" + x("ab") + "{-9}" + x("cd") + "{1}" + x("efgh"), "ab cd cd efgh", true},
		{"alternatives", "*:" + x("pre") + "(6161|62|63)" + x("post"), "prebpost", true},
		{"longer alternative", "*:" + x("pre") + "(6161|62|63)" + x("post"), "preaapost", true},
		{"no alternative", "*:" + x("pre") + "(6161|62|63)" + x("post"), "predpost", false},
		{"alternatives before the window", "*:" + x("p") + "(6161|62)" + x("a long run"), "paaa long run", true},
		{"wildcard in alternative", "*:" + x("pre") + "(6?)" + x("post"), "prezpost", false},
		{"not", "*:" + x("pre") + "!(61|62)" + x("post"), "precpost", true},
		{"not, but it is", "*:" + x("pre") + "!(61|62)" + x("post"), "preapost", false},
		{"not, at the end", "*:" + x("pre") + "!(61|62)", "pre", false},
		{"offset with gap before the window", "0:" + x("ab") + "{-9}" + x("a long run here"), "abab..a long run here", true},
		{"levels", "*:" + x("needle") + ":70:99", "hay needle hay", true},
		{"zeros only", "*:00000000000000000000", "ab" + strings.Repeat("\x00", 200), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := open(t, map[string]string{"x.ndb": "Sig:0:" + c.sig + "\n"})
			if s := e.Status(); s.Bad != 0 {
				t.Fatalf("not loaded: %v", s.Files[0].Problems)
			}
			if got := names(t, e, []byte(c.data)) != nil; got != c.want {
				t.Errorf("found = %v, want %v", got, c.want)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	sig := hex.EncodeToString([]byte("evil code"))
	for _, c := range []struct {
		target int
		data   string
		want   bool
	}{
		{0, "evil code", true}, {1, "MZ evil code", true}, {1, "evil code", false}, {2, "\xD0\xCF\x11\xE0 evil code", true},
		{2, "evil code", false}, {3, "<B>EVIL Code", true}, {4, "evil code", true}, {5, "evil code", true},
		{6, "\x7FELF evil code", true}, {6, "evil code", false}, {7, "Evil CODE", true}, {0, "Evil CODE", false},
		{9, "\xFE\xED\xFA\xCE evil code", true}, {10, "junk %PDF-1.4 evil code", true}, {10, "evil code", false},
		{11, "CWS evil code", true}, {12, "\xCA\xFE\xBA\xBE evil code", true}, {12, "evil code", false},
	} {
		e := open(t, map[string]string{"x.ndb": fmt.Sprintf("Sig:%d:*:%s", c.target, sig)})
		if got := names(t, e, []byte(c.data)) != nil; got != c.want {
			t.Errorf("target %d in %q: found = %v", c.target, c.data, got)
		}
	}
}

func TestHashes(t *testing.T) {
	data := []byte("some harmful octets")
	m, s1, s2 := md5.Sum(data), sha1.Sum(data), sha256.Sum256(data)
	e := open(t, map[string]string{
		"a.hdb": fmt.Sprintf("%x:%d:Md5-1\n%x:%d:Md5-wrong-size\n", m, len(data), m, len(data)+1),
		"b.hsb": fmt.Sprintf("%x:%d:Sha1-1\r\n%x:*:Sha256-any:73\n%X:*:Sha256-upper\n", s1, len(data), s2, s2),
	})
	want := []string{"Md5-1", "Sha1-1", "Sha256-any", "Sha256-upper"}
	if got := names(t, e, data); !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if got := names(t, e, append(data, '!')); got != nil {
		t.Errorf("found %v in other octets", got)
	}
	// A digest that the caller has made already is not made again, but it counts.
	found, err := e.Inspect(context.Background(), &inspect.Object{Sum: s2, Body: inspect.Bytes(data)})
	if err != nil || len(found) != 4 {
		t.Errorf("with Sum given: %v, %v", found, err)
	}
}

func TestBadLinesCostOnlyThemselves(t *testing.T) {
	good := hex.EncodeToString([]byte("needle"))
	lines := []struct{ line, reason string }{
		{"# a comment", ""},
		{"", ""},
		{"Good-1:0:*:" + good, ""},
		{"Short:0:*:6161", "no run of three"},
		{"Fields:0:*", "3 fields"},
		{"Target:x:*:" + good, "target"},
		{"EntryPoint:1:EP+5:" + good, "offset \"EP+5\" is not supported"},
		{"Section:1:S1+5:" + good, "not supported"},
		{"Odd:0:*:" + good + "6", "odd number"},
		{"NotHex:0:*:zz" + good, "column 1"},
		{"Boundary:0:*:" + good + "(B)", "not supported"},
		{"Anchored:0:*:" + good + "[1-2]aa", "not supported"},
		{"OpenGap:0:*:" + good + "{1", "not closed"},
		{"BadGap:0:*:" + good + "{x}" + good, "gap {x}"},
		{"WideGap:0:*:" + good + "{1-99999}" + good, "32768"},
		{"EndGap:0:*:" + good + "{1-2}", "without octets after"},
		{"EndStar:0:*:" + good + "*", "without octets after"},
		{"StartStar:0:*:*" + good, "without octets before"},
		{"OpenAlt:0:*:" + good + "(61|", "not closed"},
		{"EmptyAlt:0:*:" + good + "(61|)", "empty"},
		{"NotLengths:0:*:" + good + "!(61|6162)", "different lengths"},
		{":0:*:" + good, "name is empty"},
		{"Long:0:*:" + strings.Repeat("6", maxLine), "longer"},
		{"Good-2:0:*:" + good, ""},
	}
	var all []string
	var want []string
	for i, l := range lines {
		all = append(all, l.line)
		if l.reason != "" {
			want = append(want, fmt.Sprintf("x.ndb:%d: ", i+1)+"|"+l.reason)
		}
	}
	e := open(t, map[string]string{"x.ndb": strings.Join(all, "\n"), "y.txt": "not ours", "z.hdb": "zz:1:n\n" +
		"00:1:n\n00112233445566778899aabbccddeeff:x:n\n00112233445566778899aabbccddeeff:1:\n00112233445566778899aabbccddeeff:1\n"})
	s := e.Status()
	if s.Patterns != 2 || s.Hashes != 0 || len(s.Files) != 2 || s.Files[1].Bad != 5 || s.Bad != len(want)+5 {
		t.Fatalf("status %+v", s)
	}
	for i, p := range s.Files[0].Problems {
		where, reason, _ := strings.Cut(want[i], "|")
		if !strings.HasPrefix(p, where) || !strings.Contains(p, reason) {
			t.Errorf("problem %q, want %q and %q", p, where, reason)
		}
	}
	if got := names(t, e, []byte("a needle")); !slices.Equal(got, []string{"Good-1", "Good-2"}) {
		t.Errorf("found %v", got)
	}
}

func TestReloadOnUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	now := time.Now()
	e, err := Open(Config{Dir: dir, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	sig := func(name, text string) string { return name + ":0:*:" + hex.EncodeToString([]byte(text)) + "\n" }
	expect := func(data string, want ...string) {
		t.Helper()
		if got := names(t, e, []byte(data)); !slices.Equal(got, want) {
			t.Fatalf("found %v, want %v (status %+v)", got, want, e.Status())
		}
	}
	expect("alpha beta")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.ndb", sig("A", "alpha"))
	expect("alpha beta") // two seconds have not gone by
	now = now.Add(2 * time.Second)
	expect("alpha beta", "A")
	write(t, dir, "b.ndb", sig("B", "beta")+"rubbish\n")
	now = now.Add(2 * time.Second)
	expect("alpha beta", "A", "B")
	if s := e.Status(); s.Bad != 1 || s.Patterns != 2 {
		t.Errorf("status %+v", s)
	}
	// A file that turns into something unreadable keeps what it gave.
	if err := os.Remove(filepath.Join(dir, "b.ndb")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/mem", filepath.Join(dir, "b.ndb")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	expect("alpha beta", "A", "B")
	if s := e.Status(); s.Files[1].Error == "" || s.Patterns != 2 {
		t.Errorf("status %+v", s)
	}
	// One that is taken away takes its signatures along.
	for _, name := range []string{"a.ndb", "b.ndb"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(2 * time.Second)
	expect("alpha beta")
	// A directory that cannot be read changes nothing.
	write(t, dir, "a.ndb", sig("A", "alpha"))
	now = now.Add(2 * time.Second)
	expect("alpha", "A")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(dir), "later", "a file")
	now = now.Add(2 * time.Second)
	expect("alpha", "A")
	if e.Status().Error == "" {
		t.Error("nothing is reported")
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "f", "")
	if _, err := Open(Config{Dir: filepath.Join(dir, "f")}); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("err = %v", err)
	}
}

func TestConcurrentUseAndReload(t *testing.T) {
	e := open(t, map[string]string{"a.ndb": "A:0:*:" + hex.EncodeToString([]byte("alpha"))})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if got := names(t, e, []byte("alpha")); len(got) != 1 {
					t.Errorf("found %v", got)
					return
				}
			}
		})
	}
	for range 20 {
		if err := e.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

type brokenBody struct{ inspect.Bytes }

func (brokenBody) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

func TestFailures(t *testing.T) {
	e := open(t, map[string]string{"a.ndb": "A:0:*:" + hex.EncodeToString([]byte("abc")) + "{-30000}" + hex.EncodeToString([]byte("xyz")) + "\n"})
	category := func(err error) string {
		var f *inspect.Failure
		if errors.As(err, &f) {
			return f.Category
		}
		return fmt.Sprint(err)
	}
	t.Run("a body that cannot be read is not clean", func(t *testing.T) {
		_, err := e.Inspect(context.Background(), &inspect.Object{Body: brokenBody{inspect.Bytes("x")}})
		if category(err) != inspect.Unavailable {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("a deadline is not clean", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := e.Inspect(ctx, &inspect.Object{Body: inspect.Bytes("x")})
		if category(err) != inspect.Timeout {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("an object that makes work without end is not clean", func(t *testing.T) {
		data := bytes.Repeat([]byte("abc"), 30_000)
		start := time.Now()
		_, err := e.Inspect(context.Background(), &inspect.Object{Body: inspect.Bytes(data)})
		if category(err) != inspect.Limits {
			t.Errorf("err = %v", err)
		}
		t.Logf("given up after %v", time.Since(start))
	})
}

// TestMatcherAgainstIndex compares the matcher with a search for each string.
func TestMatcherAgainstIndex(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		size := []int{3, 4, 8, 16}[round%4]
		letters := 2 + rnd.IntN(6)
		random := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = 'a' + byte(rnd.IntN(letters))
			}
			return b
		}
		data := random(rnd.IntN([]int{3000, 3000, 30_000}[round%3]))
		var windows []window
		want := map[[2]int]bool{}
		for ref := range 1 + rnd.IntN(50) {
			w := random(size)
			if rnd.IntN(2) == 0 && len(data) > size {
				at := rnd.IntN(len(data) - size + 1)
				w = data[at : at+size]
			}
			windows = append(windows, window{w, int32(ref)})
			for at := 0; at+size <= len(data); at++ {
				if bytes.Equal(data[at:at+size], w) {
					want[[2]int{at, ref}] = true
				}
			}
		}
		last := -1
		newMatcher(size, windows).find(data, 0, func(at int, ref int32) bool {
			if at < last {
				t.Fatalf("hits out of order")
			}
			last = at
			key := [2]int{at, int(ref)}
			// Heads of eight octets decide; longer windows are compared by the caller.
			if !bytes.Equal(data[at:at+size], windows[ref].octets) {
				if size <= 8 {
					t.Fatalf("round %d: false hit", round)
				}
				return true
			}
			if !want[key] {
				t.Fatalf("round %d: hit twice or wrong at %v", round, key)
			}
			delete(want, key)
			return true
		})
		if len(want) > 0 {
			t.Fatalf("round %d, size %d: %d missed: %v", round, size, len(want), want)
		}
	}
}

func FuzzSignature(f *testing.F) {
	for _, s := range []string{"A:0:*:616263", "A:0:EOF-3,9:61??62(63|6464)*65666768{2-9}6a6b6c", "A:3:0:!(61|62)646566{-3}61", "A:7:*:6?616263{3-}616263"} {
		f.Add(s, []byte("abcabc..abcdefghddx"))
	}
	f.Fuzz(func(t *testing.T, line string, data []byte) {
		p, err := parseNDB(line)
		if err != nil {
			if p != nil {
				t.Fatal("both a pattern and an error")
			}
			return
		}
		e := &Engine{cfg: Config{Poll: -1}}
		e.buffers.New = func() any { return new(buffers) }
		e.db.Store(newDatabase(map[string]*file{"f": {patterns: []*pattern{p}}}))
		var got [2]string
		for i, body := range []inspect.Body{inspect.Bytes(data), atRest{data}} {
			found, err := e.Inspect(context.Background(), &inspect.Object{Body: body})
			got[i] = fmt.Sprint(found, err)
		}
		if got[0] != got[1] {
			t.Fatalf("in memory %s, in blocks %s", got[0], got[1])
		}
	})
}

func benchmarkData(n int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func benchmarkEngine(b *testing.B, signatures int) *Engine {
	rnd := rand.New(rand.NewPCG(5, 6))
	var s strings.Builder
	for i := range signatures {
		fmt.Fprintf(&s, "Sig-%d:0:*:", i)
		for range 24 {
			fmt.Fprintf(&s, "%02x", byte(rnd.Uint32()))
		}
		s.WriteByte('\n')
	}
	return open(b, map[string]string{"x.ndb": s.String()})
}

func BenchmarkEngine(b *testing.B) {
	data := benchmarkData(1 << 20)
	text := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog, and so on; base64 too: TWFpbHdlaXIgaXM=\r\n", 1<<20/88))
	for _, n := range []int{0, 1000, 10000} {
		e := benchmarkEngine(b, n)
		for _, c := range []struct {
			name string
			data []byte
		}{{"random", data}, {"text", text}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				b.SetBytes(int64(len(c.data)))
				b.ReportAllocs()
				o := &inspect.Object{Body: inspect.Bytes(c.data)}
				for b.Loop() {
					if found, err := e.Inspect(context.Background(), o); err != nil || found != nil {
						b.Fatal(found, err)
					}
				}
			})
		}
	}
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			sha256.Sum256(data)
		}
	})
}
