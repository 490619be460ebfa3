// Package repack takes what is harmful out of a message: it puts a notice in its place and the original into an
// attached archive.
//
// [Repacker.Repack] answers with edits against the message as it was received, so that what stays is never written
// anew. Where the message can be read in one way only, each infected part becomes a notice under the same part number.
// Where it cannot, where the part is inside of something signed, or where the settings say so, the whole message
// becomes a notice with the original as a file in the archive; its header stays, octet for octet, except for what
// describes the old content and what is not a proper header field. Where the result would be longer than the next server
// takes (inspect.Message.SizeLimit), the archive is left out if the original is in the quarantine; a notice alone in
// place of the message is the last form.
//
// What is written is normal: CRLF, 7 bits, lines of at most 76 characters, one reading, which is verified before the
// edits are handed out. The same message and settings give the same octets. Big parts go through the spool; memory does
// not depend on their size.
package repack

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/spool"
)

const archiveName = "quarantine.zip"

// Settings is what an administrator writes.
type Settings struct {
	RepackPassword   Password `key:"RepackPassword" default:"None" doc:"Protects the archive with what was removed from a message: None, Plain(password) for one password for all, HMAC(secret) for a password for each message, which is the lower-case base32 of the first 10 octets of HMAC-SHA-256(secret, id); the notice shows the id. Encryption is AES-256."`
	RepackForm       string   `key:"RepackForm" enum:"Part|Message" default:"Part" doc:"What is put into the archive: the harmful parts, or the whole message. Signed messages and such as can be read in several ways are always archived whole."`
	RepackMaxArchive int64    `key:"RepackMaxArchive" type:"size" default:"None" none:"yes" doc:"A longer archive is left out if the original is in the quarantine."`
	TemplatesDir     string   `key:"TemplatesDir" default:"" doc:"Directory of notices of your own: en/repack.txt, a text/template of Go. What is missing there is built in."`
	TemplateContacts string   `key:"TemplateContacts" default:"" doc:"Whom to ask, as shown in notices: a name, an address, a telephone number."`
}

// Check reads the templates.
func (s *Settings) Check() error {
	t, err := loadTemplate(s.TemplatesDir)
	if err == nil {
		_, err = render(t, Notice{Threats: []Threat{{}}})
	}
	return err
}

// Config is what the gateway wires in.
type Config struct {
	Settings
	Spool *spool.Pool
	Host  string // name of this gateway, as shown in notices; may be empty
}

// Repacker makes edits. It is safe for concurrent use.
type Repacker struct{ cfg Config }

// New returns a Repacker.
func New(cfg Config) *Repacker { return &Repacker{cfg} }

// BadPart is a part to be removed, and why. A nil Part is the whole message.
type BadPart struct {
	Part     *mimetree.Part // of the tree over the message's body; another tree's means the whole message
	Findings []inspect.Finding
}

var (
	errCheck = errors.New("check repacked message")           // our own output did not pass the check
	errSize  = errors.New("the repacked message is too long") // for the server that is to take it
)

// Repack returns what to change in m, whose tree is tree, so that nothing of bad is left. The function releases what the
// edits hold; it is nil when there is an error. quarantineID, when not empty, is shown in the notice.
func (r *Repacker) Repack(ctx context.Context, m *inspect.Message, tree *mimetree.Part, bad []BadPart, quarantineID string) (*inspect.Edits, func(), error) {
	if tree == nil {
		tree = mimetree.Parse(m.Body, m.Body.Size(), mimetree.Limits{})
	}
	tmpl, err := loadTemplate(r.cfg.TemplatesDir)
	if err != nil {
		return nil, nil, err
	}
	j := &job{r: r, ctx: ctx, m: m, tree: tree, bad: bad, tmpl: tmpl, quarantineID: quarantineID}
	if err := j.identify(); err != nil {
		return nil, nil, err
	}
	if err := j.ladder(); err != nil {
		return nil, nil, fmt.Errorf("repack message: %w", err)
	}
	return &inspect.Edits{List: j.edits}, j.close, nil
}

// ladder tries one form after another, from the one that keeps most of the message to a notice alone.
func (j *job) ladder() error {
	whole, bare := j.r.cfg.RepackForm == "Message" || !j.inPlace(), false
	for {
		err := j.make(whole, bare)
		if err == nil {
			err = j.check(whole)
		}
		if err == nil {
			err = j.fits()
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errCheck) && !whole:
			whole = true
		case errors.Is(err, errSize) && !bare && j.quarantineID != "":
			bare = true // nothing is lost: the original is in the quarantine
		case errors.Is(err, errSize) && !whole:
			whole = true // what is left of the message is too large as well
		default:
			j.close()
			return err
		}
		j.close()
	}
}

// fits says whether the next server takes the result. The door may add a line end.
func (j *job) fits() error {
	_, size, err := (&inspect.Edits{List: j.edits}).Apply(j.m.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", errCheck, err)
	}
	if limit := j.m.SizeLimit; limit > 0 && size+2 > limit {
		return fmt.Errorf("%w: %d octets, the server takes %d", errSize, size, limit)
	}
	return nil
}

// job is one message being repacked.
type job struct {
	r            *Repacker
	ctx          context.Context
	m            *inspect.Message
	tree         *mimetree.Part
	bad          []BadPart
	tmpl         *template.Template
	quarantineID string

	sum    [32]byte // of the message
	id     string   // what the password is derived from
	notice Notice
	edits  []inspect.Edit
	files  []*spool.File
	sums   map[[32]byte]bool // of what must be gone
}

func (j *job) close() {
	for _, f := range j.files {
		f.Close()
	}
	j.files, j.edits = nil, nil
}

// identify finds the message's id.
func (j *job) identify() error {
	h := sha256.New()
	if _, err := io.Copy(h, until(j.ctx, inspect.Reader(j.m.Body))); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	h.Sum(j.sum[:0])
	j.id = j.tree.Get("Message-ID")
	if j.id == "" || len(j.id) > 200 || strings.IndexFunc(j.id, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		j.id = hex.EncodeToString(j.sum[:16])
	}
	j.notice = j.r.notice(j.tree, j.id, j.quarantineID)
	return nil
}

// inPlace says whether the bad parts can be replaced where they stand.
func (j *job) inPlace() bool {
	if len(j.m.Views) > 0 || len(j.bad) == 0 {
		return false
	}
	parts := map[*mimetree.Part]bool{}
	for p := range j.tree.All() {
		if len(p.Others) > 0 || slices.ContainsFunc(p.Odd, func(o string) bool { return mimetree.IsAmbiguous(o) || mimetree.IsLimit(o) }) {
			return false
		}
		parts[p] = true
	}
	for _, b := range j.bad {
		if !parts[b.Part] || b.Part.Kind > mimetree.Message || b.Part == j.tree && b.Part.Kind != mimetree.Leaf {
			return false
		}
		for p := b.Part.Parent; p != nil; p = p.Parent {
			switch p.Type {
			case "multipart/signed", "multipart/encrypted", // a signature is not half replaced
				"multipart/report", "multipart/appledouble": // the type promises certain parts
				return false
			}
		}
	}
	return true
}

// make fills in the edits; bare leaves the archive out.
func (j *job) make(whole, bare bool) error {
	j.notice.Whole, j.notice.Archive = whole, archiveName
	j.sums = map[[32]byte]bool{}
	var files []file
	var parts []BadPart
	if whole {
		files = []file{{name: "message.eml", open: func() io.Reader { return inspect.Reader(j.m.Body) }, sum: j.sum}}
		j.sums[j.sum] = true
	} else {
		parts = j.outermost()
		var err error
		if files, err = j.removed(parts); err != nil {
			return err
		}
	}
	var arch inspect.Body
	var err error
	if bare {
		j.notice.Archive = ""
	} else if arch, err = j.archive(files); err != nil {
		return err
	}
	switch {
	case whole || j.tree.Kind == mimetree.Leaf:
		err = j.newBody(arch)
	case j.tree.Type == "multipart/mixed":
		if err = j.replace(parts); err == nil {
			j.attach(arch)
		}
	default:
		if err = j.replace(parts); err == nil {
			err = j.wrap(arch)
		}
	}
	slices.SortStableFunc(j.edits, func(a, b inspect.Edit) int { // those at one place stay in order
		if a.Start != b.Start {
			return int(min(max(a.Start-b.Start, -1), 1))
		}
		return 0
	})
	return err
}

// outermost returns the bad parts in order, one entry a part, without those that lie inside of another.
func (j *job) outermost() (out []BadPart) {
	byPart := map[*mimetree.Part]int{}
	for _, b := range j.bad {
		p := b.Part
		for q := b.Part; q != nil; q = q.Parent {
			if slices.ContainsFunc(j.bad, func(x BadPart) bool { return x.Part == q }) {
				p = q
			}
		}
		i, ok := byPart[p]
		if !ok {
			i = len(out)
			byPart[p] = i
			out = append(out, BadPart{Part: p})
		}
		out[i].Findings = append(out[i].Findings, b.Findings...)
	}
	slices.SortFunc(out, func(a, b BadPart) int { return int(min(max(a.Part.Start-b.Part.Start, -1), 1)) })
	return out
}

// removed lists the contents of the parts as files.
func (j *job) removed(parts []BadPart) (files []file, err error) {
	used := map[string]bool{}
	for _, b := range parts {
		p := b.Part
		f := file{name: fileName(p, used)}
		f.open = func() io.Reader { return p.Decoded(j.m.Body) }
		if p.Kind == mimetree.Multipart {
			f.open = func() io.Reader { return io.NewSectionReader(j.m.Body, p.Start, p.End-p.Start) }
		}
		h := sha256.New()
		content := f.open()
		if _, err := io.Copy(h, until(j.ctx, content)); err != nil {
			return nil, fmt.Errorf("read part %s: %w", p.Path, err)
		}
		if d, ok := content.(*mimetree.Decoder); ok && len(d.Dialects()) > 0 {
			return nil, fmt.Errorf("%w: part %s can be decoded in several ways", errCheck, p.Path)
		}
		h.Sum(f.sum[:0])
		j.sums[f.sum] = true
		files = append(files, f)
	}
	return files, nil
}

// fileName makes a harmless name of the one that the part has.
func fileName(p *mimetree.Part, used map[string]bool) string {
	name := path.Base(strings.ReplaceAll(oneLine(p.Name), `\`, "/"))
	name = strings.Map(func(r rune) rune {
		if strings.ContainsRune(`<>:"|?*`, r) || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, name)
	name = strings.Trim(name, " .")
	if r := []rune(name); len(r) > 100 {
		name = string(r[:40]) + "…" + string(r[len(r)-59:]) // the extension is the telling part
	}
	switch {
	case name != "" && name != "/":
	case p.Kind == mimetree.Message:
		name = "part-" + p.Path + ".eml"
	default:
		name = "part-" + p.Path + ".bin"
	}
	if used[strings.ToLower(name)] {
		name = p.Path + "-" + name
	}
	used[strings.ToLower(name)] = true
	return name
}

// archive makes the archive as base64; nil means that it is left out.
func (j *job) archive(files []file) (inspect.Body, error) {
	f := j.r.cfg.Spool.Create()
	j.files = append(j.files, f)
	l := &lines{w: f}
	limit := j.r.cfg.RepackMaxArchive
	if j.quarantineID == "" {
		limit = 0
	}
	if server := j.m.SizeLimit; server > 0 { // more than that need not be made
		l.room = server
	}
	err := archive(j.ctx, &bounded{w: l, left: limit, none: limit <= 0}, j.r.cfg.Spool, files, j.r.cfg.RepackPassword.For(j.id))
	if errors.Is(err, errBounded) {
		j.notice.Archive = ""
		return nil, nil
	}
	if err == nil {
		err = l.flush()
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// errBounded says that RepackMaxArchive was reached.
var errBounded = errors.New("archive exceeds RepackMaxArchive")

// bounded is a writer with an end.
type bounded struct {
	w    io.Writer
	left int64
	none bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 && !b.none {
		return 0, errBounded
	}
	return b.w.Write(p)
}

const archiveHead = "Content-Type: application/zip; name=\"" + archiveName + "\"\r\n" +
	"Content-Disposition: attachment; filename=\"" + archiveName + "\"\r\n" +
	"Content-Transfer-Encoding: base64\r\n\r\n"

// edit adds an edit that puts what in the place of [start, end).
func (j *job) edit(start, end int64, what ...inspect.Body) {
	e := inspect.Edit{Start: start, End: end}
	switch len(what) {
	case 0:
	case 1:
		e.New = what[0]
	default:
		e.New = joined(what...)
	}
	j.edits = append(j.edits, e)
}

// text renders the notice for some of the findings as a MIME entity.
func (j *job) text(bad []BadPart, extra string) (inspect.Bytes, error) {
	n := j.notice
	n.Threats, n.Reason = threats(bad)
	text, err := render(j.tmpl, n)
	if err != nil {
		return nil, err
	}
	return textPart(text, extra), nil
}

// replace puts a notice in the place of each part.
func (j *job) replace(parts []BadPart) error {
	for _, b := range parts {
		extra := ""
		if id := b.Part.Get("Content-ID"); id != "" && len(id) < 200 && plain(id) { // what refers to it finds the notice
			extra = "Content-ID: " + id + "\r\n"
		}
		text, err := j.text([]BadPart{b}, extra)
		if err != nil {
			return err
		}
		if b.Part.Parent.Kind != mimetree.Message {
			j.edit(b.Part.Start, b.Part.End, text)
			continue
		}
		// The content of an attached message: its header stays.
		blank := bytes.Index(text, []byte("\r\n\r\n"))
		j.header(b.Part, append([]byte("MIME-Version: 1.0\r\n"), text[:blank+2]...), "")
		j.edit(b.Part.BodyStart, b.Part.End, text[blank+4:])
	}
	return nil
}

// attach puts the archive at the end of the message's multipart/mixed.
func (j *job) attach(arch inspect.Body) {
	if arch == nil {
		return
	}
	head := "\r\n--" + j.tree.Boundary + "\r\n" + archiveHead
	if j.tree.Close > 0 {
		j.edit(j.tree.Close, j.tree.Close, inspect.Bytes(head), arch)
		return
	}
	j.edit(j.tree.End, j.tree.End, inspect.Bytes(head), arch, inspect.Bytes("\r\n--"+j.tree.Boundary+"--\r\n"))
}

// newBody makes a message of a notice and the archive in place of the old body.
func (j *job) newBody(arch inspect.Body) error {
	boundary, err := j.boundary()
	if err != nil {
		return err
	}
	text, err := j.text(j.bad, "")
	if err != nil {
		return err
	}
	j.header(j.tree, mixed(boundary, ""), "")
	before := inspect.Bytes("--" + boundary + "\r\n" + string(text) + "\r\n")
	if arch == nil {
		j.edit(j.tree.BodyStart, j.m.Body.Size(), append(before, "--"+boundary+"--\r\n"...))
		return nil
	}
	j.edit(j.tree.BodyStart, j.m.Body.Size(), append(before, "--"+boundary+"\r\n"+archiveHead...), arch,
		inspect.Bytes("\r\n--"+boundary+"--\r\n"))
	return nil
}

// wrap makes a multipart/mixed of the old content, which is a multipart of another kind, and the archive.
func (j *job) wrap(arch inspect.Body) error {
	if arch == nil {
		return nil
	}
	boundary, err := j.boundary()
	if err != nil {
		return err
	}
	var fields bytes.Buffer
	encoding := ""
	for _, f := range j.tree.Header {
		if !describes(f.Name) || strings.EqualFold(f.Name, "MIME-Version") {
			continue
		}
		b := make([]byte, f.End-f.Start)
		if _, err := j.m.Body.ReadAt(b, f.Start); err != nil && err != io.EOF {
			return fmt.Errorf("read header: %w", err)
		}
		fields.Write(b)
		if strings.EqualFold(f.Name, "Content-Transfer-Encoding") && (j.tree.Encoding == "8bit" || j.tree.Encoding == "binary") {
			encoding = j.tree.Encoding // RFC 2045 §6.4: what is around has at least the encoding of what is within
		}
	}
	j.header(j.tree, mixed(boundary, encoding), "--"+boundary+"\r\n"+fields.String()+"\r\n")
	j.edit(j.tree.End, j.tree.End, inspect.Bytes("\r\n--"+boundary+"\r\n"+archiveHead), arch, inspect.Bytes("\r\n--"+boundary+"--\r\n"))
	return nil
}

// mixed is the header of a multipart/mixed.
func mixed(boundary, encoding string) []byte {
	s := "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary=\"" + boundary + "\"\r\n"
	if encoding != "" {
		s += "Content-Transfer-Encoding: " + encoding + "\r\n"
	}
	return []byte(s)
}

// describes says whether a header field is about the content that is going to be another.
func describes(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "content-") || name == "mime-version"
}

// header replaces the fields of part that describe its content by fields, drops what is no proper field, and puts first
// before the body. Everything else is left alone.
func (j *job) header(part *mimetree.Part, fields []byte, first string) {
	at := part.Start
	for _, f := range part.Header {
		if f.Start < at || f.Doubtful {
			continue
		}
		if describes(f.Name) || !j.proper(f) {
			continue
		}
		if f.Start > at {
			j.edit(at, f.Start)
		}
		at = f.End
	}
	j.edit(at, part.BodyStart, inspect.Bytes(string(fields)+"\r\n"+first))
}

// proper says whether the octets of a field are read in the same way by everybody.
func (j *job) proper(f mimetree.Field) bool {
	if f.End-f.Start > 60<<10 {
		return false
	}
	b := make([]byte, f.End-f.Start)
	if _, err := j.m.Body.ReadAt(b, f.Start); err != nil && err != io.EOF {
		return false
	}
	if !bytes.HasPrefix(b, append([]byte(f.Name), ':')) || !bytes.HasSuffix(b, []byte("\r\n")) || bytes.IndexByte(b, 0) >= 0 || strings.HasPrefix(f.Name, "--") {
		return false
	}
	n := bytes.Count(b, []byte("\r\n"))
	if bytes.Count(b, []byte("\r")) != n || bytes.Count(b, []byte("\n")) != n {
		return false
	}
	for line := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte("\r\n")), []byte("\r\n")) {
		if len(bytes.Trim(line, " \t")) == 0 {
			return false
		}
	}
	return true
}

// boundary returns a delimiter that depends on the message only and does not occur in it.
func (j *job) boundary() (string, error) {
	for n := byte(0); n < 10; n++ {
		mac := hmac.New(sha256.New, []byte("mailweir repack "+j.r.cfg.RepackPassword.word))
		mac.Write(j.sum[:])
		mac.Write([]byte{n})
		b := "=_weir_" + hex.EncodeToString(mac.Sum(nil)[:16])
		found, err := contains(j.ctx, j.m.Body, []byte(b))
		if err != nil || !found {
			return b, err
		}
	}
	return "", errors.New("choose a boundary: the message holds them all")
}

// contains looks for what in body.
func contains(ctx context.Context, body inspect.Body, what []byte) (bool, error) {
	buf := make([]byte, min(body.Size(), 64<<10))
	for pos := int64(0); pos+int64(len(what)) <= body.Size(); {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := body.ReadAt(buf, pos)
		if bytes.Contains(buf[:n], what) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read message: %w", err)
		}
		pos += int64(n - len(what) + 1)
	}
	return false, nil
}
