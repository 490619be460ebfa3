package maild

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/unpack"
)

// walk looks at every part of tree, which is over body. Paths of what is found begin with prefix. messages counts the
// messages around tree. top says that tree is that of the message itself, whose parts can be repacked.
func (j *judge) walk(tree *mimetree.Part, body inspect.Body, prefix string, messages int, top bool) {
	type step struct {
		part     *mimetree.Part
		owner    *mimetree.Part // in another reading: the part that it is a reading of
		messages int
		rest     bool // no part of the tree that can be repacked
	}
	todo := []step{{part: tree, messages: messages}}
	for len(todo) > 0 && j.onTime(prefix) && !j.done() {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		p := s.part
		if top {
			j.part = p
			if s.owner != nil {
				j.part = s.owner
			}
			if s.rest {
				j.part = nil
			}
		}
		path := prefix + p.Path
		if p.Kind == mimetree.Rest { // more parts than are held at once: a limit for memory, not for what is looked at
			todo = append(todo, step{part: mimetree.ParseRest(p, body, body.Size(), mimetree.Limits{}), messages: messages, rest: true})
			continue
		}
		j.safely(path, func() { j.visit(p, body, prefix, path, s.messages) })
		for _, o := range slices.Backward(p.Others) {
			owner := s.owner
			if owner == nil {
				owner = p
			}
			todo = append(todo, step{o, owner, s.messages, s.rest})
		}
		inside := s.messages
		if p.Kind == mimetree.Message {
			if inside++; inside > j.d.cfg.MailMaxLevel {
				j.unchecked(inspect.Limits, "MailMaxLevel", path, "the message within was not looked into")
				continue
			}
		}
		for _, c := range slices.Backward(p.Children) {
			todo = append(todo, step{c, s.owner, inside, s.rest})
		}
	}
}

// visit looks at one part by itself, without its children.
func (j *judge) visit(p *mimetree.Part, body inspect.Body, prefix, path string, messages int) {
	for _, odd := range p.Odd {
		j.odd(odd, path)
	}
	switch p.Kind {
	case mimetree.Leaf:
		j.leaf(p, body, path, messages)
	case mimetree.Multipart, mimetree.Message:
		if p.Type == "multipart/encrypted" { // RFC 1847 §2.2
			j.unchecked(inspect.Encrypted, "encrypted", path, "multipart/encrypted: needs the recipient's key")
		}
		plain := true
		for _, enc := range p.Encodings {
			if encoded(enc) {
				plain = false
				j.encodedTree(p, enc, body, prefix, path, messages)
			}
		}
		if plain {
			j.uuencoded(body, p.BodyStart, p.End, path, messages, p.Kind == mimetree.Multipart && len(p.Children) == 0)
		}
	default: // between parts: the engines have seen it in the whole message
		j.uuencoded(body, p.Start, p.End, path, messages, true)
	}
}

// encodedTree walks what is in a multipart that is encoded as a whole (RFC 2045 §6.4 forbids it).
func (j *judge) encodedTree(p *mimetree.Part, enc string, body inspect.Body, prefix, path string, messages int) {
	st, err := j.store(p.DecodedAs(body, enc).Borrowing(&j.d.pools.mime))
	defer st.close()
	if err != nil {
		j.failed(path, err)
	}
	j.nested(j.d.pools.mime.ParseDecoded(p, st.body, st.body.Size(), mimetree.Limits{}), st, prefix, messages)
}

// nested walks a tree over something that was taken out of a part.
func (j *judge) nested(tree *mimetree.Part, st *stored, prefix string, messages int) {
	j.depth++
	defer func() { j.depth-- }()
	j.walk(tree, st.body, prefix, messages, false)
}

// odd notes something odd about the structure.
func (j *judge) odd(name, path string) {
	switch {
	case mimetree.IsLimit(name):
		j.unchecked(inspect.Limits, name, path, "")
	case mimetree.IsAmbiguous(name):
		j.unchecked(inspect.Ambiguous, name, path, "")
	default:
		j.add(inspect.Finding{Kind: inspect.Odd, Name: name, Path: path})
	}
}

// leaf looks at a part in every encoding that some program may undo.
func (j *judge) leaf(p *mimetree.Part, body inspect.Body, path string, messages int) {
	if p.Name != "" {
		path += "/" + cleanName(p.Name)
	}
	encodings := p.Encodings
	if len(encodings) == 0 {
		encodings = []string{p.Encoding}
	}
	encodings = append(slices.Clip(encodings), p.Hidden(body)...)
	plain := false
	for i := 0; i < len(encodings); i++ {
		enc := encodings[i]
		if !encoded(enc) {
			if plain {
				continue
			}
			plain = true
			st := j.section(body, p.BodyStart, p.End)
			j.object(path, p.Name, p.Type, st, messages)
			if p.UTF7() {
				j.text(path, st, true)
			}
			st.close()
			continue
		}
		d := p.DecodedAs(body, enc).Borrowing(&j.d.pools.mime)
		st, err := j.store(d)
		if i < max(len(p.Encodings), 1) { // of one that was only guessed, everything may be odd
			for _, odd := range d.Odd() {
				j.odd(odd, path)
			}
		}
		if err != nil {
			j.failed(path, err)
		}
		j.object(path, p.Name, p.Type, st, messages)
		if p.UTF7() {
			j.text(path, st, true)
		}
		st.close()
		for _, dialect := range d.Dialects() {
			if !slices.Contains(encodings, dialect) {
				encodings = append(encodings, dialect)
			}
		}
	}
}

// text looks at a text in a charset that hides ASCII from a search for octets.
func (j *judge) text(path string, of *stored, utf7 bool) {
	st, err := j.store(mimetree.NewText(of.body, of.body.Size(), utf7))
	defer st.close()
	if err != nil {
		j.failed(path, err)
	}
	if st.body.Size() > 0 {
		j.engines(&inspect.Object{Msg: j.m, Path: path, Type: "text/plain", Sum: st.sum, Body: st.body})
	}
}

// encoded says whether undoing enc gives other octets.
func encoded(enc string) bool {
	switch enc {
	case "base64", "quoted-printable", "uuencode", "x-uuencode", "x-uue", "uue":
		return true
	}
	return strings.HasPrefix(enc, "base64~")
}

// object looks at one object: the engines, and then what is in it. The same octets are looked at once; where they come
// again, what was found in them is found again.
func (j *judge) object(path, name, mediaType string, st *stored, messages int) {
	if st.body.Size() == 0 || j.done() || !j.onTime(path) {
		return
	}
	formats := j.d.pools.unpack.Formats(st.body, st.body.Size(), name)
	mail := j.isMail(st.body, name, mediaType)
	if len(formats) > 0 || mail {
		j.identify(st) // what is in it is worth being looked at once
	}
	key := object{st.sum, name, mediaType, j.budget.Level(unpack.Archive), messages}
	if old := j.seen[key]; st.hashed && old != nil {
		for _, f := range old.found {
			if rest, ok := strings.CutPrefix(f.Path, old.path); ok {
				f.Path = path + rest
			}
			j.add(f)
		}
		return
	}
	mark := len(j.log)
	j.safely(path, func() {
		j.engines(&inspect.Object{Msg: j.m, Path: path, Name: name, Type: mediaType, Sum: st.sum, Body: st.body})
		j.depth++
		defer func() { j.depth-- }()
		j.inside(path, name, formats, mail, st, messages)
		j.sealed(path, name, mediaType, st, messages)
		var buf [8]byte
		if mimetree.IsText(head(st.body, buf[:])) {
			j.text(path, st, false)
		}
	})
	if st.hashed && len(j.log) < maxFindings { // else it may lack some
		if j.seen == nil {
			j.seen = map[object]*inspected{}
		}
		j.seen[key] = &inspected{path, slices.Clone(j.log[mark:])}
	}
}

// inside looks for objects within an object: archives, messages, uuencoded files.
func (j *judge) inside(path, name string, formats []string, mail bool, st *stored, messages int) {
	body := st.body
	for _, format := range formats {
		where := j.where
		j.where = path
		err := unpack.Walk(format, body, body.Size(), j.budget, func(m unpack.Member) error {
			if m.Name == "" {
				m.Name = unpacked(name)
			}
			return j.member(path, m, messages)
		})
		j.where = where
		if err != nil && !errors.Is(err, errDone) {
			j.failed(path, err)
		}
	}
	if mail {
		if messages+1 > j.d.cfg.MailMaxLevel {
			j.unchecked(inspect.Limits, "MailMaxLevel", path, "the message within was not looked into")
		} else {
			j.nested(j.d.pools.mime.Parse(body, body.Size(), mimetree.Limits{}), st, path+"/", messages+1)
		}
		return
	}
	j.uuencoded(body, 0, body.Size(), path, messages, true)
}

// unpacked guesses the name of what was packed as name: gzip and bzip2 need not tell it.
func unpacked(name string) string {
	ext := extension(name)
	name = strings.TrimSuffix(name, ext)
	switch strings.ToLower(ext) {
	case ".tgz", ".tbz", ".tbz2":
		return name + ".tar"
	}
	return name
}

var errDone = errors.New("nothing more to be found out")

// member looks at one member of an archive.
func (j *judge) member(path string, m unpack.Member, messages int) error {
	if j.done() {
		return errDone
	}
	path += "/" + cleanName(m.Name)
	if m.Encrypted {
		j.unchecked(inspect.Encrypted, "encrypted", path, "needs a password")
		return nil
	}
	r, err := m.Open()
	if err != nil {
		j.failed(path, err)
		return nil
	}
	st, err := j.store(r)
	defer st.close()
	if err != nil {
		// What came before the end of it is still looked at.
		j.failed(path, err)
	}
	j.object(path, m.Name, "", st, messages)
	if err := j.ctx.Err(); err != nil {
		return err
	}
	if errors.Is(err, unpack.ErrLimit) && j.spent(err) {
		return err
	}
	return nil
}

// spent tells whether err is a limit of the whole message, which the next member would meet at once.
func (j *judge) spent(err error) bool {
	var l *unpack.LimitError
	return errors.As(err, &l) && l.Limit == "MaxSizeToExtract"
}

// uuencoded looks for uuencoded files in the octets [start, end) of body.
func (j *judge) uuencoded(body inspect.Body, start, end int64, path string, messages int, look bool) {
	if !look || start >= end {
		return
	}
	if mem, ok := body.(inspect.Bytes); ok && !bytes.Contains(mem[start:end], []byte("begin")) {
		return // nearly always, and much cheaper to tell
	}
	found := j.d.pools.mime.FindUU(body, start, end, maxUU)
	if len(found) == maxUU {
		j.unchecked(inspect.Limits, "uuencoded files", path, "more than are looked at")
	}
	for i := range found {
		u := found[i]
		st, err := j.store(u.Decoded(body).Borrowing(&j.d.pools.mime))
		if err != nil {
			j.failed(path, err)
		}
		j.object(path+"/"+cleanName(u.Name), u.Name, "", st, messages)
		st.close()
		j.endless = j.endless || !u.Ended
		if j.done() || !j.onTime(path) {
			return
		}
	}
}

// maxUU bounds the uuencoded files in one text.
const maxUU = 10_000

// isMail tells whether an object is a message that some program would open as one.
func (j *judge) isMail(body inspect.Body, name, mediaType string) bool {
	switch strings.ToLower(extension(name)) {
	case ".eml", ".mht", ".mhtml", ".mbox", ".mbx", ".nws":
		return true
	}
	switch mediaType {
	case "message/rfc822", "message/global", "message/news", "application/mbox", "multipart/related":
		return true
	}
	buf := j.d.pools.copies.Get().(*[copySize]byte)
	defer j.d.pools.copies.Put(buf)
	start := strings.ToLower(string(head(body, buf[:32])))
	first, _, _ := strings.Cut(start, ":")
	switch strings.TrimRight(first, " \t") {
	case "received", "return-path", "delivered-to", "from", "to", "date", "subject", "message-id", "mime-version", "content-type":
	default:
		if !strings.HasPrefix(start, "from ") && !strings.HasPrefix(start, "x-") {
			return false
		}
	}
	text := "\n" + strings.ToLower(string(head(body, buf[:4096])))
	// One field may begin a text as well; two of these make a message.
	fields := 0
	for _, f := range []string{"\nfrom:", "\nto:", "\nsubject:", "\ndate:", "\nmessage-id:", "\nmime-version:", "\ncontent-type:", "\nreceived:"} {
		if strings.Contains(text, f) {
			fields++
		}
	}
	return fields >= 2
}

func extension(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[i:]
	}
	return ""
}

// cleanName makes a name from the mail fit for a path in findings, events and terminals.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7F && r < 0xA0 || r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069 {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(name, "_"))
	if r := []rune(name); len(r) > 200 {
		name = string(r[:200]) + "…"
	}
	if name == "" {
		return "unnamed"
	}
	return name
}
