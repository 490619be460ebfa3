package maild

import (
	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

// lineEnds looks at the message as programs read it for which other octets end a line (views: see mimetree.View). What
// is odd there is not reported in full, for binary attachments would be full of it; that there are other parts is.
func (j *judge) lineEnds(views []mimetree.View) {
	j.inView, j.quiet = true, true
	defer func() { j.inView, j.quiet = false, false }()
	for _, v := range views {
		if j.done() || !j.onTime(v.String()) {
			return
		}
		j.safely(v.String(), func() { j.lineEnd(v) })
	}
}

// lineEnd looks at one of the views.
func (j *judge) lineEnd(v mimetree.View) {
	st, err := j.store(mimetree.NewView(j.m.Body, j.m.Body.Size(), v))
	defer st.close()
	if err != nil {
		j.failed(v.String(), err)
	}
	j.engines(&inspect.Object{Msg: j.m, Path: v.String(), Type: "message/rfc822", Sum: st.sum, Body: st.body})
	tree := j.d.pools.mime.Parse(st.body, st.body.Size(), mimetree.Limits{})
	j.walk(tree, st.body, v.String()+"/", 0, false)
	if !sameShape(j.tree, tree) {
		j.quiet = false
		j.unchecked(inspect.Ambiguous, "line-ends", v.String(), "programs disagree on where lines end, and so on what parts there are")
		j.quiet = true
	}
}

// sameShape says whether two trees have the same parts.
func sameShape(a, b *mimetree.Part) bool {
	type pair struct{ a, b *mimetree.Part }
	todo := []pair{{a, b}}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if p.a.Kind != p.b.Kind || p.a.Type != p.b.Type || p.a.Name != p.b.Name || p.a.Encoding != p.b.Encoding {
			return false
		}
		x, y := realParts(p.a), realParts(p.b)
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			todo = append(todo, pair{x[i], y[i]})
		}
	}
	return true
}

// realParts returns the children of p without the text between them.
func realParts(p *mimetree.Part) (out []*mimetree.Part) {
	for _, c := range p.Children {
		if c.Kind < mimetree.Preamble {
			out = append(out, c)
		}
	}
	return out
}

// beyond looks at uuencoded files that have no end in their part: a program that looks for such files in the message as
// it is, and knows of no parts, reads on behind the delimiter (M-047).
func (j *judge) beyond() {
	if j.endless && !j.done() {
		j.inView = true
		j.uuencoded(j.m.Body, 0, j.m.Body.Size(), "~uuencode", 0, true)
		j.inView = false
	}
}
