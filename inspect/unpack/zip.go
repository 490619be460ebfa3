package unpack

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Signatures of APPNOTE.TXT §4.3, little endian.
const (
	sigLocal   = "PK\x03\x04"
	sigCentral = "PK\x01\x02"
	sigEnd     = "PK\x05\x06"
	sigEnd64   = "PK\x06\x06"
	sigFind64  = "PK\x06\x07"

	localSize   = 30
	centralSize = 46
	endSize     = 22

	unknownEnd = -1
	maxName    = 4 << 10 // octets of a name that are kept
)

// entry is what a header says about a file.
type entry struct {
	name       string
	flags      uint16
	method     uint16
	crc        uint32
	packed     int64 // compressed size, unknownEnd when the header leaves it open
	size       int64
	offset     int64 // of the local header
	data       int64 // of the content; from local headers only
	descriptor bool  // sizes follow the content
}

func (e *entry) encrypted() bool { return e.flags&1 != 0 || e.flags&1<<6 != 0 || e.method == 99 }

// zip walks both accounts of a zip file's contents: the central directory at its end, which most programs believe, and
// the headers before each file, which some scanners and repair tools go by.
func (w *walker) zip() error {
	central, err := w.directory()
	if err != nil && !errors.Is(err, ErrBroken) {
		return err
	}
	broken := err
	byOffset := make(map[int64]int, len(central))
	for i, e := range central {
		if _, twice := byOffset[e.offset]; twice {
			w.b.odd("two-entries-for-one-file", "%q", e.name)
		} else {
			byOffset[e.offset] = i
		}
	}
	seen := make([]bool, len(central))
	if err := w.chain(central, byOffset, seen); err != nil {
		return err
	}
	for i, e := range central {
		if seen[i] {
			continue
		}
		local, lerr := w.local(e.offset)
		if lerr != nil {
			w.b.odd("entry-without-file", "%q at octet %d", e.name, e.offset)
			broken = fmt.Errorf("%w: zip: no file where the directory says %q is", ErrBroken, e.name)
			continue
		}
		if byOffset[e.offset] == i {
			w.b.odd("overlapping-entries", "%q at octet %d", e.name, e.offset)
		}
		if _, err := w.both(e, local); err != nil {
			return err
		}
	}
	return broken
}

// chain visits every file that has a local header, from the beginning to the end, whether the directory knows it or not.
func (w *walker) chain(central []entry, byOffset map[int64]int, seen []bool) error {
	for pos := int64(0); pos < w.size; {
		at, err := w.find(pos, w.size, []byte(sigLocal))
		if err != nil || at < 0 {
			return err
		}
		i, known := byOffset[at]
		local, err := w.local(at)
		if err != nil || !known && !local.plausible() {
			pos = at + int64(len(sigLocal))
			continue
		}
		var end int64
		if known {
			seen[i] = true
			end, err = w.both(central[i], local)
		} else {
			if len(central) > 0 {
				w.b.odd("file-not-in-directory", "%q at octet %d", local.name, at)
			}
			end, err = w.file(local, local.packed)
		}
		if err != nil {
			return err
		}
		pos = max(end, local.data)
	}
	return nil
}

// both visits a file of which both accounts are known: once if they agree, by each of them if they do not. It returns
// where the content ends.
func (w *walker) both(c entry, l entry) (end int64, err error) {
	packed := l.packed
	if packed == unknownEnd {
		packed = c.packed
	}
	var differ []string
	for _, d := range []struct {
		what string
		yes  bool
	}{
		{"name", c.name != l.name},
		{"method", c.method != l.method},
		{"encryption", c.encrypted() != l.encrypted()},
		{"compressed size", c.packed != packed},
		{"size", !l.descriptor && l.size != c.size},
		{"checksum", !l.descriptor && l.crc != c.crc},
	} {
		if d.yes {
			differ = append(differ, d.what)
		}
	}
	c.data = l.data
	if end, err = w.file(c, c.packed); err != nil || differ == nil {
		return end, err
	}
	w.b.odd("directory-and-file-differ", "%q: %v", c.name, differ)
	if c.name == l.name && c.method == l.method && c.encrypted() == l.encrypted() && c.packed == packed {
		return end, nil // the same octets
	}
	other, err := w.file(l, packed)
	return min(max(end, l.data), max(other, l.data)), err
}

// plausible says whether a header that the directory does not know can be one, and not just octets like it.
func (e *entry) plausible() bool {
	known := e.method <= 20 || e.method >= 93 && e.method <= 99
	return known && e.name != "" && bytes.IndexByte([]byte(e.name), 0) < 0
}

// file visits one file and returns where its content ends, as far as that is known.
func (w *walker) file(e entry, packed int64) (end int64, err error) {
	end = e.data
	limit := w.size
	if packed != unknownEnd {
		limit = min(e.data+packed, w.size)
		end = limit
	}
	if len(e.name) > 0 && e.name[len(e.name)-1] == '/' && e.size <= 0 && packed == 0 {
		return end, nil // a directory
	}
	src := newSource(w.body, e.data, limit)
	m := Member{Name: e.name, Size: e.size, Encrypted: e.encrypted()}
	m.Open = once(func() (io.Reader, error) {
		if m.Encrypted {
			return nil, ErrEncrypted
		}
		r, err := w.content(e, src, limit, packed)
		if err != nil {
			return nil, err
		}
		return &meter{b: w.b, r: r, consumed: src.consumed}, nil
	})
	if err := w.member(m); err != nil {
		return end, err
	}
	if packed == unknownEnd {
		end = e.data + src.consumed()
	}
	return end, nil
}

// content returns the reader for e's method.
func (w *walker) content(e entry, src source, limit, packed int64) (io.Reader, error) {
	switch e.method {
	case 0:
		if packed == unknownEnd { // up to the descriptor, or whatever comes next
			at, err := w.find(e.data, limit, []byte("PK"))
			if err != nil {
				return nil, err
			}
			if at >= 0 {
				return io.LimitReader(src, at-e.data), nil
			}
		}
		if packed != unknownEnd && e.data+packed > w.size {
			return io.MultiReader(src, failing{io.ErrUnexpectedEOF}), nil
		}
		return src, nil
	case 8:
		return flate.NewReader(src), nil
	case 12:
		return bzip2Reader{w, bzip2.NewReader(src)}, nil
	}
	return nil, fmt.Errorf("%w: zip method %d", ErrUnsupported, e.method)
}

// failing is a reader of an error.
type failing struct{ err error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

// local reads the header before a file, APPNOTE.TXT §4.3.7.
func (w *walker) local(at int64) (e entry, err error) {
	var h [localSize]byte
	if at < 0 || at > w.size-localSize {
		return e, errNotHere
	}
	if _, err := w.body.ReadAt(h[:], at); err != nil && err != io.EOF || string(h[:4]) != sigLocal {
		return e, errNotHere
	}
	le := binary.LittleEndian
	e = entry{offset: at, flags: le.Uint16(h[6:]), method: le.Uint16(h[8:]), crc: le.Uint32(h[14:]),
		packed: int64(le.Uint32(h[18:])), size: int64(le.Uint32(h[22:]))}
	rest := make([]byte, int(le.Uint16(h[26:]))+int(le.Uint16(h[28:])))
	if n, _ := w.body.ReadAt(rest, at+localSize); n < len(rest) {
		return e, errNotHere
	}
	n := le.Uint16(h[26:])
	e.name = string(rest[:min(n, maxName)])
	e.data = at + localSize + int64(len(rest))
	zip64(&e, rest[n:], true)
	if e.flags&8 != 0 { // §4.4.4 bit 3
		e.descriptor = true
		if e.packed == 0 {
			e.packed, e.size = unknownEnd, -1
		}
	}
	return e, nil
}

// zip64 takes sizes from the extra field, APPNOTE.TXT §4.5.3.
func zip64(e *entry, extra []byte, local bool) {
	le := binary.LittleEndian
	for len(extra) >= 4 {
		id, n := le.Uint16(extra), int(le.Uint16(extra[2:]))
		extra = extra[4:]
		if n > len(extra) {
			return
		}
		if id == 1 {
			field := extra[:n]
			for _, v := range []*int64{&e.size, &e.packed, &e.offset} {
				if *v == 0xffffffff && len(field) >= 8 && (v != &e.offset || !local) {
					*v = int64(le.Uint64(field) &^ (1 << 63))
					field = field[8:]
				}
			}
		}
		extra = extra[n:]
	}
}

// end is where the directory is.
type end struct {
	start, stop int64 // of the directory
	base        int64 // what to add to offsets, because something was put before the archive
	entries     int64
}

// findEnd looks for the end record, APPNOTE.TXT §4.3.16, in the last 64 KiB: the last one whose directory is there.
func findEnd(body io.ReaderAt, size int64, buf *[tailSize]byte) (end, error) {
	n := max(min(size, tailSize), 0)
	tail := buf[:n]
	if _, err := body.ReadAt(tail, size-n); err != nil && err != io.EOF {
		return end{}, err
	}
	// From the last piece to the first, each forwards: that is done many octets at a time, while going backwards is not.
	const piece = 8 << 10
	var found []int
	for stop := len(tail); stop > 0; stop -= piece {
		found = found[:0]
		here := tail[:min(stop+len(sigEnd)-1, len(tail))]
		for at := max(stop-piece, 0); ; at++ {
			i := bytes.Index(here[at:], []byte(sigEnd))
			if i < 0 {
				break
			}
			at += i
			found = append(found, at)
		}
		for _, i := range slices.Backward(found) {
			if len(tail)-i < endSize {
				continue
			}
			if e, ok := readEnd(body, tail[i:], size-n+int64(i)); ok {
				return e, nil
			}
		}
	}
	return end{}, errNotHere
}

// readEnd reads the end record at octet at, and the one of zip64 before it.
func readEnd(body io.ReaderAt, rec []byte, at int64) (e end, ok bool) {
	le := binary.LittleEndian
	e.entries = int64(le.Uint16(rec[10:]))
	length, start := int64(le.Uint32(rec[12:])), int64(le.Uint32(rec[16:]))
	e.stop = at
	if find := make([]byte, 20); at >= 20 && readsAs(body, find, at-20, sigFind64) {
		rec64 := make([]byte, 56)
		where := int64(le.Uint64(find[8:]) &^ (1 << 63))
		if !readsAs(body, rec64, where, sigEnd64) { // something was put before the archive
			where = at - 20 - 56
		}
		if readsAs(body, rec64, where, sigEnd64) {
			e.entries = int64(le.Uint64(rec64[32:]) &^ (1 << 63))
			length, start = int64(le.Uint64(rec64[40:])&^(1<<63)), int64(le.Uint64(rec64[48:])&^(1<<63))
			e.stop = where
		}
	}
	if e.entries == 0 && length == 0 {
		e.start = e.stop
		return e, true // an empty archive
	}
	var sig [4]byte
	if length >= 0 && length <= e.stop && readsAs(body, sig[:], e.stop-length, sigCentral) {
		e.start = e.stop - length
		e.base = e.start - start
		return e, true
	}
	if readsAs(body, sig[:], start, sigCentral) {
		e.start = start
		return e, true
	}
	return e, false
}

// readsAs fills b from octet at and says whether it begins with sig.
func readsAs(body io.ReaderAt, b []byte, at int64, sig string) bool {
	if at < 0 {
		return false
	}
	n, _ := body.ReadAt(b, at)
	return n == len(b) && string(b[:4]) == sig
}

// directory reads the central directory. Without one there are no entries, and it is an oddity.
func (w *walker) directory() (entries []entry, err error) {
	tail := w.b.Buffers.tail()
	e, err := findEnd(w.body, w.size, tail)
	w.b.Buffers.giveBack(tail)
	if err != nil {
		w.b.odd("no-central-directory", "of a zip file")
		return nil, fmt.Errorf("%w: zip: the central directory is missing", ErrBroken)
	}
	if e.base > 0 {
		w.b.odd("prepended-data", "%d octets before the zip file", e.base)
	}
	r := bufio.NewReader(io.NewSectionReader(w.body, e.start, e.stop-e.start))
	var h [centralSize]byte
	le := binary.LittleEndian
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil || string(h[:4]) != sigCentral {
			break
		}
		if len(entries) >= w.b.lim.Objects {
			return nil, &LimitError{"number of objects"}
		}
		x := entry{flags: le.Uint16(h[8:]), method: le.Uint16(h[10:]), crc: le.Uint32(h[16:]), packed: int64(le.Uint32(h[20:])),
			size: int64(le.Uint32(h[24:])), offset: int64(le.Uint32(h[42:]))}
		rest := make([]byte, int(le.Uint16(h[28:]))+int(le.Uint16(h[30:]))+int(le.Uint16(h[32:])))
		if _, err := io.ReadFull(r, rest); err != nil {
			break
		}
		x.name = string(rest[:min(le.Uint16(h[28:]), maxName)])
		zip64(&x, rest[le.Uint16(h[28:]):], false)
		x.offset = w.rebase(x.offset, e.base)
		entries = append(entries, x)
	}
	if int64(len(entries)) != e.entries && int64(len(entries))&0xffff != e.entries {
		w.b.odd("wrong-entry-count", "%d entries, the end record says %d", len(entries), e.entries)
	}
	if len(entries) == 0 && e.entries > 0 {
		return nil, fmt.Errorf("%w: zip: the central directory cannot be read", ErrBroken)
	}
	return entries, nil
}

// rebase finds out whether an offset counts from the beginning of the file or of the archive in it.
func (w *walker) rebase(offset, base int64) int64 {
	var sig [4]byte
	if base != 0 && readsAs(w.body, sig[:], offset+base, sigLocal) || base != 0 && !readsAs(w.body, sig[:], offset, sigLocal) {
		return offset + base
	}
	return offset
}
