package repack

import (
	"archive/zip"
	"compress/flate"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"mailweir/inspect/spool"
)

// file is something to be put into the archive.
type file struct {
	name string
	open func() io.Reader // may be called several times
	sum  [32]byte         // SHA-256 of the content
}

// archive writes a zip of the files to w. The same files and password give the same octets: there are no times in it
// and the salt comes from password and content. (That is why the encryption is here: libraries draw a random salt.)
func archive(ctx context.Context, w io.Writer, pool *spool.Pool, files []file, password string) error {
	z := zip.NewWriter(w)
	for _, f := range files {
		if err := member(ctx, z, pool, f, password); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func member(ctx context.Context, z *zip.Writer, pool *spool.Pool, f file, password string) error {
	if password == "" {
		w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Deflate})
		if err != nil {
			return err
		}
		_, err = io.Copy(w, until(ctx, f.open()))
		return err
	}
	packed := pool.Create()
	defer packed.Close()
	size, err := seal(packed, until(ctx, f.open()), password, f.sum)
	if err != nil {
		return err
	}
	// WinZip AE-2: method 99, the true one in the extra field, no checksum.
	h := &zip.FileHeader{Name: f.name, Method: 99, Flags: 1, CreatorVersion: 51, ReaderVersion: 51,
		CompressedSize64: uint64(packed.Size()), UncompressedSize64: uint64(size),
		Extra: []byte{0x01, 0x99, 7, 0, 2, 0, 'A', 'E', 3, 8, 0}}
	if !ascii(f.name) {
		h.Flags |= 0x800 // the name is UTF-8
	}
	w, err := z.CreateRaw(h)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(packed, 0, packed.Size()))
	return err
}

const (
	saltSize = 16
	keySize  = 32
	rounds   = 1000 // fixed by the format
	authSize = 10
)

// seal writes salt, verifier, the deflated and encrypted content of r, and its authentication code. It returns the
// octets read.
func seal(w io.Writer, r io.Reader, password string, sum [32]byte) (size int64, err error) {
	mac := hmac.New(sha256.New, []byte(password))
	mac.Write(sum[:])
	salt := mac.Sum(nil)[:saltSize]
	keys, err := pbkdf2.Key(sha1.New, password, salt, rounds, 2*keySize+2)
	if err != nil {
		return 0, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(keys[:keySize])
	if err != nil {
		return 0, fmt.Errorf("derive key: %w", err)
	}
	if _, err := w.Write(append(salt, keys[2*keySize:]...)); err != nil {
		return 0, err
	}
	s := &sealer{w: w, block: block, mac: hmac.New(sha1.New, keys[keySize:2*keySize])}
	deflate, err := flate.NewWriter(s, flate.BestSpeed)
	if err != nil {
		return 0, err
	}
	if size, err = io.Copy(deflate, r); err != nil {
		return size, err
	}
	if err := deflate.Close(); err != nil {
		return size, err
	}
	_, err = w.Write(s.mac.Sum(nil)[:authSize])
	return size, err
}

// sealer encrypts what is written to it: AES in counter mode, the counter little-endian and from 1, then HMAC-SHA1 of
// the result.
type sealer struct {
	w       io.Writer
	block   cipher.Block
	mac     hash.Hash
	counter uint64
	input   [aes.BlockSize]byte
	stream  [aes.BlockSize]byte
	left    int // unused octets at the end of stream
	out     []byte
}

// Write implements io.Writer.
func (s *sealer) Write(p []byte) (int, error) {
	s.out = append(s.out[:0], p...)
	for i := range s.out {
		if s.left == 0 {
			s.counter++
			binary.LittleEndian.PutUint64(s.input[:], s.counter)
			s.block.Encrypt(s.stream[:], s.input[:])
			s.left = len(s.stream)
		}
		s.out[i] ^= s.stream[len(s.stream)-s.left]
		s.left--
	}
	s.mac.Write(s.out)
	return s.w.Write(s.out)
}

// lines writes base64 in lines of 76 characters, the last one without a line end.
type lines struct {
	w   io.Writer
	in  []byte
	out []byte
	any bool

	room    int64 // octets that may be written; 0: no limit
	written int64
}

const perLine = 57

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		take := min(len(p), 300*perLine-len(l.in))
		l.in = append(l.in, p[:take]...)
		p = p[take:]
		if len(l.in) == 300*perLine {
			if err := l.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush writes what is there; the last call writes the last line.
func (l *lines) flush() error {
	l.out = l.out[:0]
	for in := l.in; len(in) > 0; {
		line := in[:min(perLine, len(in))]
		in = in[len(line):]
		if l.any {
			l.out = append(l.out, '\r', '\n')
		}
		l.any = true
		l.out = base64.StdEncoding.AppendEncode(l.out, line)
	}
	l.in = l.in[:0]
	if l.written += int64(len(l.out)); l.room > 0 && l.written > l.room {
		return errSize
	}
	_, err := l.w.Write(l.out)
	return err
}

// until makes a reader end with ctx.
func until(ctx context.Context, r io.Reader) io.Reader { return &untilReader{ctx, r} }

type untilReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (u *untilReader) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
