package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Change edits the file at path, durably and as a whole: it is locked against other changes, checked before anything
// is written, and replaced in one step with its mode and owner kept. A file that does not exist is created with mode
// 0640. When apply is not nil it is called with the new settings after the file was replaced; if it fails, the old
// file comes back.
func Change(ctx context.Context, path string, edit Edit, apply func(*Loaded) error) (*Loaded, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	dir := filepath.Dir(path)
	if path == DefaultPath {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make configuration directory: %w", err)
		}
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	old, err := ReadFile(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing {
		old, err = &File{Path: path}, nil
	}
	if err != nil {
		return nil, err
	}
	changed, err := NewTable().Apply(old, edit)
	if err != nil {
		return nil, err
	}
	if err := replace(path, changed.File.data); err != nil {
		return nil, err
	}
	if apply == nil {
		return changed, nil
	}
	if err := apply(changed); err != nil {
		undo := func() error { return replace(path, old.data) }
		if missing {
			undo = func() error { return os.Remove(path) }
		}
		if e := undo(); e != nil {
			err = errors.Join(err, fmt.Errorf("restore configuration: %w", e))
		}
		return nil, err
	}
	return changed, nil
}

// lock holds the directory of a configuration file against other changes. A lock on the directory leaves no file
// behind and survives that the file itself is replaced.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock configuration: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil // closing unlocks
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			d.Close()
			return nil, fmt.Errorf("lock configuration: %w", err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, errors.New("lock configuration: another change is under way; try again")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// replace puts data in the place of the file at path: a temporary file beside it, fsync, rename, fsync of the
// directory.
func replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
			err = fmt.Errorf("write configuration: %w", err)
		}
	}()
	mode := fs.FileMode(0o640)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid()) {
			if err := tmp.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
	}
	if err := tmp.Chmod(mode); err != nil {
		return err
	}
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
