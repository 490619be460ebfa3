package unpack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const payload = "this is what was to be found"

// found is what a walk to the bottom of an object shows.
type found struct {
	objects []string // "path = content"
	odd     []string
	errs    []error
}

// all walks down as the scanner does.
func all(body []byte, l Limits) *found {
	f := &found{}
	b := NewBudget(l, nil, func(name, _ string) { f.odd = append(f.odd, name) })
	f.walk("", body, b)
	return f
}

func (f *found) walk(path string, body []byte, b *Budget) {
	for _, format := range Formats(bytes.NewReader(body), int64(len(body)), path) {
		err := Walk(format, bytes.NewReader(body), int64(len(body)), b, func(m Member) error {
			name := path + "/" + m.Name
			r, err := m.Open()
			if err != nil {
				f.errs = append(f.errs, fmt.Errorf("%s: %w", name, err))
				return nil
			}
			content, err := io.ReadAll(r)
			if err != nil {
				f.errs = append(f.errs, fmt.Errorf("%s: %w", name, err))
			}
			if len(content) < 1000 {
				f.objects = append(f.objects, name+" = "+string(content))
			}
			f.walk(name, content, b)
			return nil
		})
		if err != nil {
			f.errs = append(f.errs, fmt.Errorf("%s: %w", path, err))
		}
	}
}

func (f *found) has(t *testing.T, object string) {
	t.Helper()
	if !slices.Contains(f.objects, object) {
		t.Errorf("%q is not among %q (errors %v, odd %q)", object, f.objects, f.errs, f.odd)
	}
}

func (f *found) failed(target error) bool {
	return slices.ContainsFunc(f.errs, func(err error) bool { return errors.Is(err, target) })
}

func (f *found) clean(t *testing.T) {
	t.Helper()
	if len(f.errs) > 0 || len(f.odd) > 0 {
		t.Errorf("errors %v, odd %q", f.errs, f.odd)
	}
}

// run runs a tool in dir, or skips where there is none.
func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "sub"), 0o700)
	for name, content := range map[string]string{"a.txt": payload, "sub/b.txt": strings.Repeat(payload+"\n", 30), "empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestToolsArchives(t *testing.T) {
	long := strings.Repeat(payload+"\n", 30)
	for _, c := range []struct {
		name, out string
		commands  [][]string
		want      []string
	}{
		{"zip", "x.zip", [][]string{{"zip", "-q", "-r", "x.zip", "a.txt", "sub", "empty"}}, []string{"/a.txt = " + payload, "/sub/b.txt = " + long, "/empty = "}},
		{"zip stored", "x.zip", [][]string{{"zip", "-q", "-0", "x.zip", "a.txt"}}, []string{"/a.txt = " + payload}},
		{"zip to a pipe", "x.zip", [][]string{{"sh", "-c", "zip -q - a.txt sub/b.txt | cat > x.zip"}}, []string{"/a.txt = " + payload, "/sub/b.txt = " + long}},
		{"zip from a pipe, zip64", "x.zip", [][]string{{"sh", "-c", "cat a.txt | zip -q -fz- x.zip - | cat; cat a.txt | zip -q x.zip -"}}, []string{"/- = " + payload}},
		{"zip bzip2", "x.zip", [][]string{{"7z", "a", "-tzip", "-mm=BZip2", "x.zip", "a.txt"}}, []string{"/a.txt = " + payload}},
		{"zip by 7z", "x.zip", [][]string{{"7z", "a", "-tzip", "x.zip", "a.txt", "sub"}}, []string{"/a.txt = " + payload, "/sub/b.txt = " + long}},
		{"zip in zip", "y.zip", [][]string{{"zip", "-q", "x.zip", "a.txt"}, {"zip", "-q", "-0", "y.zip", "x.zip"}}, []string{"/x.zip/a.txt = " + payload}},
		{"gzip", "a.txt.gz", [][]string{{"gzip", "a.txt"}}, []string{"/a.txt = " + payload}},
		{"gzip, no name", "a.txt.gz", [][]string{{"gzip", "-n", "a.txt"}}, []string{"/ = " + payload}},
		{"gzip joined", "j.gz", [][]string{{"sh", "-c", "gzip -nc sub/b.txt > j.gz; gzip -nc a.txt >> j.gz"}}, []string{"/ = " + long + payload, "/#2 = " + payload}},
		{"bzip2", "a.txt.bz2", [][]string{{"bzip2", "a.txt"}}, []string{"/ = " + payload}},
		{"bzip2 joined", "j.bz2", [][]string{{"sh", "-c", "bzip2 -c sub/b.txt > j.bz2; bzip2 -c a.txt >> j.bz2"}}, []string{"/ = " + long + payload, "/#2 = " + payload}},
		{"tar", "x.tar", [][]string{{"tar", "cf", "x.tar", "a.txt", "sub"}}, []string{"/a.txt = " + payload, "/sub/b.txt = " + long}},
		{"tar v7", "x.tar", [][]string{{"tar", "-H", "v7", "-cf", "x.tar", "a.txt"}}, []string{"/a.txt = " + payload}},
		{"tar pax", "x.tar", [][]string{{"tar", "-H", "pax", "-cf", "x.tar", "a.txt"}}, []string{"/a.txt = " + payload}},
		{"tar.gz", "x.tgz", [][]string{{"tar", "czf", "x.tgz", "a.txt"}}, []string{"//a.txt = " + payload}},
		{"tar.bz2", "x.tbz", [][]string{{"tar", "cjf", "x.tbz", "a.txt"}}, []string{"//a.txt = " + payload}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := files(t)
			for _, cmd := range c.commands {
				run(t, dir, cmd[0], cmd[1:]...)
			}
			f := all(read(t, filepath.Join(dir, c.out)), DefaultLimits())
			for _, w := range c.want {
				f.has(t, w)
			}
			f.clean(t)
		})
	}
}

// The tools' archives again, where the tools are not installed.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		file, want string
		err        error
	}{
		{"hello.zip", "/a.txt = " + payload, nil},
		{"a.txt.gz", "/ = " + payload, nil},
		{"a.txt.bz2", "/ = " + payload, nil},
		{"a.tar", "/a.txt = " + payload, nil},
		{"a.tar.gz", "//a.txt = " + payload, nil},
		{"crypted.zip", "", ErrEncrypted},
		{"aes.zip", "", ErrEncrypted},
		{"lzma.zip", "", ErrUnsupported},
	} {
		t.Run(c.file, func(t *testing.T) {
			f := all(read(t, filepath.Join("testdata", c.file)), DefaultLimits())
			if c.err != nil {
				if !f.failed(c.err) || len(f.errs) != 1 || len(f.objects) > 0 {
					t.Errorf("errors %v, objects %q", f.errs, f.objects)
				}
				return
			}
			f.has(t, c.want)
			f.clean(t)
		})
	}
}

func TestOddToolsArchives(t *testing.T) {
	for _, c := range []struct{ name, command, want, odd string }{
		{"zip behind a program", "zip -q x.zip a.txt; (head -c 3000 /bin/sh; cat x.zip) > out", "/a.txt = " + payload, "prepended-data"},
		{"zip behind a program, offsets repaired", "zip -q x.zip a.txt; (head -c 3000 /bin/sh; cat x.zip) > out; zip -q -A out", "/a.txt = " + payload, ""},
		{"joined zips", "zip -q x.zip a.txt; zip -q y.zip sub/b.txt; cat x.zip y.zip > out", "/a.txt = " + payload, "file-not-in-directory"},
		{"zip cut before the directory", "zip -q x.zip a.txt sub/b.txt; head -c 150 x.zip > out", "/a.txt = " + payload, "no-central-directory"},
		{"piped zip cut before the directory", "zip -q - sub/b.txt a.txt | cat > x.zip; head -c 240 x.zip > out", "/a.txt = " + payload, "no-central-directory"},
		{"gzip with a tail", "(gzip -nc a.txt; echo tail) > out", "/ = " + payload, "trailing-data"},
		{"bzip2 with a tail", "(bzip2 -c a.txt; echo tail tail) > out", "/ = " + payload, "trailing-data"},
		{"joined tars", "tar cf out empty; tar cf y.tar a.txt; cat y.tar >> out", "/a.txt = " + payload, "members-after-end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := files(t)
			run(t, dir, "sh", "-ec", c.command)
			f := all(read(t, filepath.Join(dir, "out")), DefaultLimits())
			f.has(t, c.want)
			if c.odd != "" && !slices.Contains(f.odd, c.odd) {
				t.Errorf("odd %q lacks %q", f.odd, c.odd)
			}
			if c.odd == "" {
				f.clean(t)
			}
		})
	}
}

func TestEncryptedMembers(t *testing.T) {
	for _, command := range []string{
		"zip -q -P secret x.zip a.txt; zip -q x.zip sub/b.txt",
		"7z a -tzip -mem=AES256 -psecret x.zip a.txt; zip -q x.zip sub/b.txt",
	} {
		t.Run(command[:3], func(t *testing.T) {
			dir := files(t)
			run(t, dir, "sh", "-ec", command)
			f := all(read(t, filepath.Join(dir, "x.zip")), DefaultLimits())
			f.has(t, "/sub/b.txt = "+strings.Repeat(payload+"\n", 30))
			if !f.failed(ErrEncrypted) || len(f.errs) != 1 {
				t.Errorf("errors %v", f.errs)
			}
		})
	}
}

func TestUnsupportedMethod(t *testing.T) {
	dir := files(t)
	run(t, dir, "7z", "a", "-tzip", "-mm=LZMA", "x.zip", "sub/b.txt")
	if f := all(read(t, filepath.Join(dir, "x.zip")), DefaultLimits()); !f.failed(ErrUnsupported) {
		t.Errorf("errors %v", f.errs)
	}
}

// zipOf makes a zip of stored or deflated files.
func zipOf(t testing.TB, method uint16, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.CreateHeader(&zip.FileHeader{Name: f[0], Method: method})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, f[1])
	}
	z.Close()
	return b.Bytes()
}

// The directory and the file's own header tell different stories: both are looked at.
func TestZipTwoAccounts(t *testing.T) {
	base := zipOf(t, zip.Store, [2]string{"a.txt", payload})
	central := bytes.Index(base, []byte(sigCentral))
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(base)
		f(b)
		return b
	}
	for _, c := range []struct {
		name string
		zip  []byte
		want []string
	}{
		{"name", edit(func(b []byte) { b[localSize] = 'X' }), []string{"/a.txt = " + payload, "/X.txt = " + payload}},
		{"encrypted in the directory only", edit(func(b []byte) { b[central+8] |= 1 }), []string{"/a.txt = " + payload}},
		{"encrypted in the header only", edit(func(b []byte) { b[6] |= 1 }), []string{"/a.txt = " + payload}},
		{"method", edit(func(b []byte) { b[central+10] = 8 }), []string{"/a.txt = " + payload}},
		{"size", edit(func(b []byte) {
			b[6] &^= 8
			binary.LittleEndian.PutUint32(b[18:], uint32(len(payload)))
			binary.LittleEndian.PutUint32(b[22:], uint32(len(payload)))
			binary.LittleEndian.PutUint32(b[central+20:], 4)
		}), []string{"/a.txt = " + payload, "/a.txt = this"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := all(c.zip, DefaultLimits())
			for _, w := range c.want {
				f.has(t, w)
			}
			if !slices.Contains(f.odd, "directory-and-file-differ") {
				t.Errorf("odd %q", f.odd)
			}
		})
	}
}

// Same list as archive/zip's for what archive/zip writes.
func TestZipAgreesWithStandardLibrary(t *testing.T) {
	for n := range 20 {
		var fs [][2]string
		for i := range n {
			fs = append(fs, [2]string{fmt.Sprintf("dir%d/file%d.txt", i%3, i), strings.Repeat(fmt.Sprint(i, payload), i*i)})
		}
		method := zip.Deflate
		if n%2 == 0 {
			method = zip.Store
		}
		b := zipOf(t, method, fs...)
		var got [][2]string
		err := Walk(Zip, bytes.NewReader(b), int64(len(b)), NewBudget(DefaultLimits(), nil, func(name, detail string) { t.Errorf("odd: %s %s", name, detail) }), func(m Member) error {
			r, err := m.Open()
			if err != nil {
				return err
			}
			content, err := io.ReadAll(r)
			got = append(got, [2]string{m.Name, string(content)})
			return err
		})
		if err != nil || !slices.Equal(got, fs) {
			t.Fatalf("%d files: got %d, %v", n, len(got), err)
		}
	}
}

// nest wraps something several times.
func nest(t testing.TB, levels int, wrap func([]byte) []byte, inner []byte) []byte {
	t.Helper()
	for range levels {
		inner = wrap(inner)
	}
	return inner
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func TestBombs(t *testing.T) {
	zeros := bytes.Repeat([]byte{0}, 8<<20)
	zipped := func(b []byte) []byte {
		var fs [][2]string
		for i := range 16 {
			fs = append(fs, [2]string{fmt.Sprintf("%x.zip", i), string(b)})
		}
		return zipOf(t, zip.Deflate, fs...)
	}
	for _, c := range []struct {
		name  string
		body  []byte
		limit string
	}{
		{"8 MB of zeros", gz(zeros), "MaxCompressionRatio"},
		{"16 to the power of 5", nest(t, 5, zipped, zipOf(t, zip.Deflate, [2]string{"0", string(zeros[:1<<20])})), "MaxSizeToExtract"},
		{"300 gzips deep", nest(t, 300, gz, []byte(payload)), "ArchiveMaxLevel"},
		{"300 zips deep", nest(t, 300, func(b []byte) []byte { return zipOf(t, zip.Store, [2]string{"a", string(b)}) }, []byte(payload)), "ArchiveMaxLevel"},
		{"overlapping files", overlapping(t, 300), "MaxSizeToExtract"},
		{"20,000 files", zipOf(t, zip.Store, slices.Repeat([][2]string{{"a", ""}, {"b", "x"}}, 10_000)...), "number of objects"},
		{"10,000 gzip members", bytes.Repeat(gz(nil), 10_000), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			l := DefaultLimits()
			l.Total = 16 << 20
			f := all(c.body, l)
			if c.limit != "" && !slices.ContainsFunc(f.errs, func(err error) bool {
				var le *LimitError
				return errors.As(err, &le) && errors.Is(err, ErrLimit) && le.Limit == c.limit
			}) {
				t.Errorf("%s was not reached: %d objects, errors %.500v", c.limit, len(f.objects), f.errs)
			}
			t.Logf("%d octets, %v", len(c.body), time.Since(begin))
		})
	}
}

// overlapping makes a zip whose directory names one file of half a megabyte n times.
func overlapping(t *testing.T, n int) []byte {
	one := zipOf(t, zip.Deflate, [2]string{"a", strings.Repeat("0123456789abcdef", 32<<10)})
	at, stop := bytes.Index(one, []byte(sigCentral)), bytes.LastIndex(one, []byte(sigEnd))
	entry := one[at:stop]
	out := slices.Concat(one[:at], bytes.Repeat(entry, n), one[stop:])
	rec := out[len(out)-endSize:]
	binary.LittleEndian.PutUint16(rec[8:], uint16(n))
	binary.LittleEndian.PutUint16(rec[10:], uint16(n))
	binary.LittleEndian.PutUint32(rec[12:], uint32(n*len(entry)))
	return out
}

func TestCheckEndsAWalk(t *testing.T) {
	stop := errors.New("stop")
	calls := 0
	b := NewBudget(DefaultLimits(), func() error {
		if calls++; calls > 3 {
			return stop
		}
		return nil
	}, nil)
	body := gz(bytes.Repeat([]byte(payload), 1<<16))
	err := Walk(Gzip, bytes.NewReader(body), int64(len(body)), b, func(m Member) error {
		r, err := m.Open()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return err
	})
	if !errors.Is(err, stop) {
		t.Errorf("err = %v", err)
	}
}

func TestLevelZeroLooksIntoNothing(t *testing.T) {
	f := all(gz([]byte(payload)), Limits{})
	if len(f.objects) != 0 || !f.failed(ErrLimit) {
		t.Errorf("%q, %v", f.objects, f.errs)
	}
}

func TestTruncated(t *testing.T) {
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	long := strings.Repeat(payload, 100)
	w.WriteHeader(&tar.Header{Name: "a", Size: int64(len(long)), Mode: 0o600})
	io.WriteString(w, long)
	w.Close()
	for _, body := range [][]byte{gz([]byte(long))[:40], tarred.Bytes()[:700], zipOf(t, zip.Deflate, [2]string{"a", long})[:50]} {
		if f := all(body, DefaultLimits()); !f.failed(ErrBroken) {
			t.Errorf("%.10q: %q, %v", body, f.objects, f.errs)
		}
	}
}

func TestDetectNeedsContent(t *testing.T) {
	for _, name := range []string{"a.zip", "a.tar", "a.gz", "a.bz2"} {
		if f, ok := Detect([]byte("just text"), name); ok {
			t.Errorf("%s: %s", name, f)
		}
	}
	if f, ok := Detect(make([]byte, 512), "a.tar"); ok {
		t.Errorf("zeros: %s", f)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(zipOf(f, zip.Deflate, [2]string{"a", payload}, [2]string{"b/c", payload}))
	f.Add(zipOf(f, zip.Store, [2]string{"a", string(gz([]byte(payload)))}))
	f.Add(gz([]byte(payload)))
	f.Add(append(gz(nil), gz([]byte(payload))...))
	golden, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range golden {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		l := DefaultLimits()
		l.Total, l.Objects = 8<<20, 200
		all(b, l)
		for _, format := range []string{Zip, Tar, Gzip, Bzip2} {
			Walk(format, bytes.NewReader(b), int64(len(b)), NewBudget(l, nil, nil), func(m Member) error {
				if r, err := m.Open(); err == nil {
					io.Copy(io.Discard, r)
				}
				return nil
			})
		}
	})
}

func BenchmarkZip(b *testing.B) {
	body := zipOf(b, zip.Deflate, [2]string{"a", strings.Repeat(payload, 1<<15)})
	b.SetBytes(int64(len(payload)) << 15)
	for b.Loop() {
		Walk(Zip, bytes.NewReader(body), int64(len(body)), NewBudget(DefaultLimits(), nil, nil), func(m Member) error {
			r, _ := m.Open()
			io.Copy(io.Discard, r)
			return nil
		})
	}
}

// TestEndRecordWhereverItIs: the end record of a zip is found at every place where it may be, in borrowed memory that
// was somebody else's before.
func TestEndRecordWhereverItIs(t *testing.T) {
	var z bytes.Buffer
	w := zip.NewWriter(&z)
	f, _ := w.Create("a.txt")
	io.WriteString(f, "hello")
	w.Close()
	var buffers Buffers
	filler := bytes.Repeat([]byte("PK\x05\x06 not the end. "), 4000)
	for _, comment := range []int{0, 1, 3, 8<<10 - 25, 8<<10 - 24, 8<<10 - 23, 8<<10 - 22, 8<<10 - 21, 8<<10 - 20, 8<<10 - 19, 8<<10 - 18, 8 << 10, 40_000, 1<<16 - 1} {
		for _, c := range [][]byte{make([]byte, comment), filler[:comment]} {
			in := bytes.Clone(z.Bytes())
			binary.LittleEndian.PutUint16(in[len(in)-2:], uint16(comment))
			in = append(append([]byte("something before it"), in...), c...)
			for _, got := range [][]string{Formats(bytes.NewReader(in), int64(len(in)), ""), buffers.Formats(bytes.NewReader(in), int64(len(in)), "")} {
				if len(got) != 1 || got[0] != Zip {
					t.Errorf("comment of %d octets: %v", comment, got)
				}
			}
		}
	}
	if got := buffers.Formats(strings.NewReader("short"), 5, ""); got != nil {
		t.Errorf("what others left in the memory is %v", got)
	}
}
