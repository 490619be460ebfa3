package maild

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"mailweir/inspect"
)

// What is encrypted from person to person cannot be looked into, and must not be taken for clean. S/MIME (RFC 8551, in the
// syntax of RFC 5652) is known by its object identifier, whatever it is called; OpenPGP by its armor (RFC 9580 §6.2) or,
// where it is declared, by its first packet.

// Object identifiers of what is in a ContentInfo (RFC 5652 §4 to §8, RFC 5083, RFC 3274), with tag and length.
const (
	oidPKCS7    = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07" // and one octet: which
	oidCMS      = "\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01"
	maxNested   = 16      // levels of BER
	maxArmorLag = 1 << 20 // how far into an object armor is looked for
)

var errBER = errors.New("cannot be read as S/MIME")

// sealed looks for S/MIME and OpenPGP, and into what is only signed.
func (j *judge) sealed(path, name, mediaType string, st *stored, messages int) {
	var buf [32]byte
	first := head(st.body, buf[:])
	switch kind := cmsKind(first); {
	case kind == "signed":
		j.signed(path, st, messages)
	case kind == "encrypted":
		j.unchecked(inspect.Encrypted, "encrypted", path, "S/MIME: needs the recipient's key")
	case kind != "":
		j.unchecked(inspect.Broken, "unsupported", path, "S/MIME: "+kind)
	case strings.HasSuffix(mediaType, "pkcs7-mime") && strings.HasPrefix(string(first), "\x30"):
		j.unchecked(inspect.Broken, "broken", path, errBER.Error())
	case pgpPacket(first, name, mediaType), j.armored(st.body):
		j.unchecked(inspect.Encrypted, "encrypted", path, "OpenPGP: needs the recipient's key")
	}
}

// cmsKind tells what a ContentInfo holds from its first octets; nothing if it is none.
func cmsKind(b []byte) string {
	r := ber{body: inspect.Bytes(b)}
	e, err := r.element(0)
	if err != nil || e.tag != 0x30 {
		return ""
	}
	rest := string(b[min(int(e.start), len(b)):])
	if id, ok := strings.CutPrefix(rest, oidPKCS7); ok && id != "" {
		switch id[0] {
		case 2:
			return "signed"
		case 3, 4, 6:
			return "encrypted"
		case 5:
			return "digested data"
		}
	}
	if id, ok := strings.CutPrefix(rest, oidCMS); ok && id != "" {
		switch id[0] {
		case 23: // RFC 5083 §2
			return "encrypted"
		case 9: // RFC 3274 §1.1
			return "compressed data"
		case 2: // RFC 5652 §9.1
			return "authenticated data"
		}
	}
	return ""
}

// signed looks at the message within signed data. Where there is none the signature is detached: the message is beside.
func (j *judge) signed(path string, of *stored, messages int) {
	content, err := newSigned(of.body)
	if err == nil && content == nil {
		return
	}
	if err != nil {
		j.unchecked(inspect.Broken, "broken", path, brief(err))
		return
	}
	st, err := j.store(content)
	defer st.close()
	if errors.Is(err, errBER) {
		j.unchecked(inspect.Broken, "broken", path, brief(err))
	} else if err != nil {
		j.failed(path, err)
	}
	j.object(path+"/signed", "", "message/rfc822", st, messages) // RFC 8551 §3.1: a MIME entity
}

// pgpPacket tells encrypted packets (RFC 9580 §5) of what says that it is OpenPGP; without that the first octet proves
// nothing.
func pgpPacket(b []byte, name, mediaType string) bool {
	ext := strings.ToLower(extension(name))
	if len(b) == 0 || b[0]&0x80 == 0 || mediaType != "application/pgp-encrypted" && ext != ".pgp" && ext != ".gpg" {
		return false
	}
	tag := b[0] >> 2 & 15
	if b[0]&0x40 != 0 {
		tag = b[0] & 63
	}
	return slices.Contains([]byte{1, 3, 9, 18, 20}, tag)
}

// armored looks for a line that begins an OpenPGP message.
func (j *judge) armored(body inspect.Body) bool {
	const armor = "\n-----BEGIN PGP MESSAGE"
	if mem, ok := body.(inspect.Bytes); ok {
		return bytes.HasPrefix(mem, []byte(armor[1:])) || bytes.Contains(mem, []byte(armor))
	}
	buf := j.d.pools.copies.Get().(*[copySize]byte)
	defer j.d.pools.copies.Put(buf)
	for at := int64(0); at < min(body.Size(), maxArmorLag) && j.ctx.Err() == nil; at += copySize - int64(len(armor)) {
		n, err := body.ReadAt(buf[:], at)
		if at == 0 && bytes.HasPrefix(buf[:n], []byte(armor[1:])) || bytes.Contains(buf[:n], []byte(armor)) {
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}

// ber walks through elements of BER (X.690 §8): lengths may be indefinite, strings may come in pieces.
type ber struct{ body inspect.Body }

// element is where one of them lies. end is negative where the length is indefinite.
type element struct {
	tag        byte
	start, end int64
}

func (b ber) element(at int64) (element, error) {
	var h [10]byte
	n, _ := b.body.ReadAt(h[:], at)
	if n < 2 || h[0]&31 == 31 { // no tag above 30 has a place here
		return element{}, errBER
	}
	e := element{h[0], at + 2, at + 2 + int64(h[1])}
	if h[1] < 0x80 {
		return e, nil
	}
	octets := int(h[1] & 0x7f)
	if octets == 0 {
		if e.tag&0x20 == 0 {
			return e, errBER
		}
		e.end = -1
		return e, nil
	}
	if octets > 7 || 2+octets > n {
		return e, errBER
	}
	size := int64(0)
	for _, c := range h[2 : 2+octets] {
		size = size<<8 | int64(c)
	}
	e.start += int64(octets)
	e.end = e.start + size
	return e, nil
}

// after returns where the element behind e begins.
func (b ber) after(e element, depth int) (int64, error) {
	if e.end >= 0 {
		return e.end, nil
	}
	if depth > maxNested {
		return 0, errBER
	}
	for at, n := e.start, 0; n < 10_000; n++ {
		in, err := b.element(at)
		if err != nil {
			return 0, err
		}
		if in.tag == 0 && in.end == in.start {
			return in.end, nil
		}
		if at, err = b.after(in, depth+1); err != nil {
			return 0, err
		}
	}
	return 0, errBER
}

// path goes into elements of these tags and over those that are negative.
func (b ber) path(tags ...int) (e element, err error) {
	at := int64(0)
	for _, t := range tags {
		if e, err = b.element(at); err != nil {
			return e, err
		}
		if t < 0 {
			t = -t
			at, err = b.after(e, 0)
		} else {
			at = e.start
		}
		if err != nil || int(e.tag) != t {
			return e, errBER
		}
	}
	return element{start: at, end: e.end}, nil
}

// signedReader reads the content of signed data.
type signedReader struct {
	ber
	at, left int64 // next element; octets left of the piece
	ends     []int64
}

// newSigned returns the content of signed data (RFC 5652 §5.1), or nil if there is none.
func newSigned(body inspect.Body) (io.Reader, error) {
	b := ber{body}
	in, err := b.path(0x30, -6, 0xa0, 0x30, -2, -0x31, 0x30, -6)
	if err != nil {
		return nil, err
	}
	encap, _ := b.path(0x30, -6, 0xa0, 0x30, -2, -0x31, 0x30)
	if in.start == encap.end {
		return nil, nil
	}
	e, err := b.element(in.start)
	if err != nil {
		return nil, err
	}
	if e.tag != 0xa0 { // the end of an indefinite length
		return nil, nil
	}
	return &signedReader{ber: b, at: e.start, ends: []int64{e.end}}, nil
}

// Read implements io.Reader.
func (r *signedReader) Read(p []byte) (int, error) {
	for r.left == 0 {
		if len(r.ends) == 0 {
			return 0, io.EOF
		}
		if end := r.ends[len(r.ends)-1]; end >= 0 && r.at >= end {
			r.ends = r.ends[:len(r.ends)-1]
			continue
		}
		e, err := r.element(r.at)
		switch {
		case err != nil:
			return 0, err
		case e.tag == 0 && e.end == e.start && r.ends[len(r.ends)-1] < 0:
			r.at, r.ends = e.end, r.ends[:len(r.ends)-1]
		case e.tag == 4:
			r.at, r.left = e.start, e.end-e.start
		case e.tag&0x20 != 0 && len(r.ends) < maxNested:
			r.at, r.ends = e.start, append(r.ends, e.end)
		default:
			return 0, errBER
		}
	}
	n, err := r.body.ReadAt(p[:min(int64(len(p)), r.left)], r.at)
	r.at, r.left = r.at+int64(n), r.left-int64(n)
	if n == 0 {
		return 0, errors.Join(errBER, err)
	}
	return n, nil
}
