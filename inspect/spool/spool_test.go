package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"mailweir/inspect"
)

var _ inspect.Body = (*File)(nil)

func newPool(t testing.TB, s Settings) *Pool {
	t.Helper()
	p, err := New(Config{Settings: s, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// octets are the same for the same n and never periodic in a chunk.
func octets(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestWriteThenRead(t *testing.T) {
	for _, size := range []int{0, 1, 100, chunkSize - 1, chunkSize, chunkSize + 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 3<<20 + 17} {
		for _, step := range []int{1 << 30, 4096, 1000, chunkSize, chunkSize + 1, 7 * chunkSize} {
			t.Run(fmt.Sprintf("%d by %d", size, step), func(t *testing.T) {
				p := newPool(t, Settings{})
				f := p.Create()
				want := octets(size)
				for at := 0; at < size; {
					n, err := f.Write(want[at:min(at+step, size)])
					if err != nil {
						t.Fatal(err)
					}
					at += n
				}
				if f.Size() != int64(size) {
					t.Fatalf("size %d", f.Size())
				}
				if got, err := io.ReadAll(inspect.Reader(f)); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read %d octets, err %v", len(got), err)
				}
				if size > 0 {
					if err := iotest.TestReader(io.NewSectionReader(f, 0, int64(min(size, 5000))), want[:min(size, 5000)]); err != nil {
						t.Error(err)
					}
				}
				if size > 256<<10 && f.disk == nil || size <= 256<<10 && f.disk != nil {
					t.Errorf("on disk: %v", f.disk != nil)
				}
				if files, used := p.Usage(); used != int64(size) || (files == 1) != (size > 0) {
					t.Errorf("usage %d files, %d octets", files, used)
				}
				for range 2 {
					if err := f.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if files, used := p.Usage(); files != 0 || used != 0 {
					t.Errorf("after Close: %d files, %d octets", files, used)
				}
				if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
					t.Errorf("read after Close: %v", err)
				}
				if _, err := f.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
					t.Errorf("write after Close: %v", err)
				}
			})
		}
	}
}

func TestQuotaIsSharedAndGivenBack(t *testing.T) {
	p := newPool(t, Settings{SpoolQuota: 1 << 20})
	a, b := p.Create(), p.Create()
	half := octets(512 << 10)
	if _, err := a.Write(half); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(half[1:]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("xx")); !errors.Is(err, ErrQuota) {
		t.Fatalf("beyond the quota: %v", err)
	}
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatalf("the last octet of the quota: %v", err)
	}
	if _, err := b.Write(nil); !errors.Is(err, ErrQuota) {
		t.Errorf("the error does not stay: %v", err)
	}
	a.Close()
	if _, err := b.Write([]byte("x")); !errors.Is(err, ErrQuota) {
		t.Errorf("the error goes away with room: %v", err)
	}
	if got, err := io.ReadAll(inspect.Reader(b)); err != nil || !bytes.Equal(got, half[1:]) {
		t.Errorf("what was written is not readable: %v", err)
	}
	b.Close()
	c := p.Create()
	defer c.Close()
	if _, err := c.Write(octets(1 << 20)); err != nil {
		t.Errorf("the quota was not given back: %v", err)
	}
}

func TestLongestMessage(t *testing.T) {
	p := newPool(t, Settings{SpoolMaxMessage: 100})
	f := p.Create()
	defer f.Close()
	if _, err := f.Write(octets(100)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrQuota) {
		t.Errorf("err = %v", err)
	}
	if _, used := p.Usage(); used != 100 {
		t.Errorf("used %d", used)
	}
}

// onFullDisk runs f with a file system of its own, of the given size, which no other process sees.
func onFullDisk(t *testing.T, kib int, options string, f func(t *testing.T, dir string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread, and its mounts, end with the goroutine
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk%s", kib, options))); err != nil {
			t.Logf("no mount namespace here: %v", err)
			return
		}
		f(t, dir)
	}()
	<-done
}

func TestDiskFull(t *testing.T) {
	onFullDisk(t, 1024, "", func(t *testing.T, dir string) {
		p, err := New(Config{Dir: dir})
		if err != nil {
			t.Error(err)
			return
		}
		f := p.Create()
		want := octets(4 << 20)
		n, werr := io.Copy(f, bytes.NewReader(want))
		if !errors.Is(werr, ErrQuota) || !errors.Is(werr, unix.ENOSPC) {
			t.Errorf("full disk: %v", werr)
		}
		if got, err := io.ReadAll(inspect.Reader(f)); err != nil || !bytes.Equal(got, want[:n]) {
			t.Errorf("%d octets before the error, read %d, %v", n, len(got), err)
		}
		f.Close()
		if files, used := p.Usage(); files != 0 || used != 0 {
			t.Errorf("after Close: %d files, %d octets", files, used)
		}
		g := p.Create()
		if _, err := g.Write(want[:900<<10]); err != nil {
			t.Errorf("the disk was not given back: %v", err)
		}
		g.Close()
	})
}

func TestReadOnlyDisk(t *testing.T) {
	onFullDisk(t, 1024, "", func(t *testing.T, dir string) {
		p, err := New(Config{Dir: dir})
		if err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Error(err)
			return
		}
		f := p.Create()
		defer f.Close()
		if _, err := f.Write(octets(1 << 20)); !errors.Is(err, ErrQuota) {
			t.Errorf("read-only disk: %v", err)
		}
		if _, err := New(Config{Dir: dir}); err == nil {
			t.Error("New took a read-only directory")
		}
	})
}

func TestNewSweepsLeftOversOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	if _, err := New(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st, err)
	}
	for _, name := range []string{leftover + "123", "somebody-elses"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if names := list(t, dir); len(names) != 1 || names[0] != "somebody-elses" {
		t.Errorf("left: %q", names)
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestNewRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	for _, dir := range []string{"", file} {
		if _, err := New(Config{Dir: dir}); err == nil {
			t.Errorf("New(%q) went well", dir)
		}
	}
}

func TestNoNameAndNoDescriptorIsLeft(t *testing.T) {
	for _, named := range []bool{false, true} {
		p := newPool(t, Settings{SpoolMemory: 1})
		p.noTmp.Store(named)
		before := descriptors(t)
		for range 50 {
			f := p.Create()
			if _, err := f.Write(octets(100 << 10)); err != nil {
				t.Fatal(err)
			}
			if names := list(t, p.dir); len(names) != 0 {
				t.Fatalf("named: %q", names)
			}
			f.Close()
		}
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	return len(list(t, "/proc/self/fd"))
}

func TestConcurrentReadersWhileWriting(t *testing.T) {
	p := newPool(t, Settings{})
	f := p.Create()
	want := octets(1 << 20)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			b := make([]byte, 5000)
			for at := int64(i); at < int64(len(want)); {
				n, err := f.ReadAt(b, at)
				if err != nil && err != io.EOF {
					t.Error(err)
					return
				}
				if !bytes.Equal(b[:n], want[at:at+int64(n)]) {
					t.Errorf("wrong octets at %d", at)
					return
				}
				at += int64(n)
				runtime.Gosched()
			}
		})
	}
	for at := 0; at < len(want); at += 3000 {
		f.Write(want[at:min(at+3000, len(want))])
	}
	wg.Wait()
	f.Close()
}

func TestSmallMessagesDoNotAllocateBuffers(t *testing.T) {
	p := newPool(t, Settings{})
	msg := octets(20 << 10)
	n := testing.AllocsPerRun(100, func() {
		f := p.Create()
		f.Write(msg)
		f.Close()
	})
	if n > 4 { // the File and its list of chunks; the race detector makes sync.Pool forget some
		t.Errorf("%.0f allocations a message", n)
	}
}

func BenchmarkSpool(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10, 10 << 20} {
		b.Run(fmt.Sprint(size>>10, "K"), func(b *testing.B) {
			p := newPool(b, Settings{})
			msg := octets(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				f := p.Create()
				for at := 0; at < size; at += 16 << 10 {
					f.Write(msg[at:min(at+16<<10, size)])
				}
				f.Close()
			}
		})
	}
}

func TestOSFile(t *testing.T) {
	content := func(t *testing.T, f *os.File) []byte {
		t.Helper()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, size := range []int{0, 1, 256 << 10, 256<<10 + 1, 300_000, 9 * chunkSize, 3<<20 + 17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := newPool(t, Settings{}).Create()
			defer f.Close()
			want := octets(size)
			if _, err := f.Write(want[:size/2]); err != nil {
				t.Fatal(err)
			}
			f.OSFile() // in the middle: what follows must not be harmed by it
			if _, err := f.Write(want[size/2:]); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				disk := f.OSFile()
				if (disk != nil) != (size > 256<<10) {
					t.Fatalf("file %v", disk)
				}
				if disk != nil && !bytes.Equal(content(t, disk), want) {
					t.Error("the file is not the body")
				}
			}
			if got, err := io.ReadAll(inspect.Reader(f)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d octets, %v", len(got), err)
			}
			f.Close()
			if f.OSFile() != nil {
				t.Error("a file after Close")
			}
		})
	}
	t.Run("closed while it is being used", func(t *testing.T) {
		// The descriptor's number may be another file's after Close; within Control it never is.
		p := newPool(t, Settings{})
		for i := range 50 {
			f := p.Create()
			want := octets(300_000 + i)
			if _, err := f.Write(want); err != nil {
				t.Fatal(err)
			}
			disk := f.OSFile()
			var wg sync.WaitGroup
			wg.Go(func() { f.Close() })
			wg.Go(func() {
				other := p.Create() // takes the number as soon as it is free
				defer other.Close()
				other.Write(octets(400_000))
			})
			raw, err := disk.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }) == nil && (err != nil || st.Size != int64(len(want))) {
				t.Fatalf("size %d of %d, %v", st.Size, len(want), err)
			}
			wg.Wait()
		}
	})
}
