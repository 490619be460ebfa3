package maild

import (
	"context"
	"errors"
	"fmt"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
)

// BadPart is a part that is to be taken out, and why.
type BadPart = repack.BadPart

// Repacker takes harmful parts out of a message: *repack.Repacker.
type Repacker interface {
	// Repack returns the edits that do it, and a function that releases what they hold.
	Repack(ctx context.Context, m *inspect.Message, tree *mimetree.Part, bad []BadPart, quarantineID string) (*inspect.Edits, func(), error)
}

// Why a repacked message is not handed out.
var (
	errStillBad  = errors.New("repacked message is not clean")
	errUnchecked = errors.New("repacked message could not be looked at")
)

// repack makes the edits of a message whose original is kept already. What they give is looked at like any message;
// should that still not be clean, the whole message is taken out instead, and in the end it is refused.
func (d *MailD) repack(ctx, scan context.Context, j *judge, v *inspect.Verdict) {
	err := errors.New("no repacker")
	if d.cfg.Repacker != nil {
		err = errStillBad
	}
	whole := []BadPart{{Part: j.tree, Findings: v.Findings}}
	attempts := [][]BadPart{j.bad, whole}
	if len(j.bad) == 0 || j.view { // what only another reading shows is in no part of this one
		attempts = attempts[1:]
	}
	for _, bad := range attempts {
		if !errors.Is(err, errStillBad) || j.tree == nil {
			break
		}
		if err = d.attempt(ctx, scan, j, v, bad); err == nil {
			return
		}
	}
	err = fmt.Errorf("repack message: %w", err)
	if scan.Err() != nil || errors.Is(err, spool.ErrQuota) || errors.Is(err, errUnchecked) {
		*v = d.deferred(j.m, *v, "repack", err) // trying again may help
		return
	}
	v.Action, v.Reply, v.Err = inspect.Reject, reply(reject, v.Reason, j.m.ID), errors.Join(v.Err, err)
}

// attempt repacks and looks at the result.
func (d *MailD) attempt(ctx, scan context.Context, j *judge, v *inspect.Verdict, bad []BadPart) (err error) {
	defer func() { // see judge.safely: a fault here must not lose the verdict either
		if r := recover(); r != nil {
			err = fmt.Errorf("panic while repacking %s: %v", j.m.ID, r)
		}
	}()
	edits, release, err := d.cfg.Repacker.Repack(ctx, j.m, j.tree, bad, v.Quarantine)
	if err != nil {
		return err
	}
	if release == nil {
		release = func() {}
	}
	if err := d.check(scan, j.m, edits); err != nil {
		release()
		return err
	}
	v.Edits, v.Close = edits, release
	return nil
}

// check looks at the message as the edits make it.
func (d *MailD) check(ctx context.Context, m *inspect.Message, edits *inspect.Edits) error {
	r, _, err := edits.Apply(m.Body)
	if err != nil {
		return err
	}
	out := d.cfg.Spool.Create()
	defer out.Close()
	buf := d.pools.copies.Get().(*[copySize]byte)
	defer d.pools.copies.Put(buf)
	if _, err := copyAll(out, r, buf[:]); err != nil {
		return err
	}
	masked := &maskedBody{out, ourArchives(out, edits)}
	j := d.judge(ctx, &inspect.Message{ID: m.ID, Door: m.Door, Session: m.Session, Envelope: m.Envelope, Body: masked})
	switch j.strongest {
	case pass:
		return nil
	case tempFail:
		return fmt.Errorf("%w: %w", errUnchecked, errors.Join(j.errs...))
	}
	names := ""
	for _, f := range j.findings {
		if e, _ := d.policy.weigh(&f); e != pass {
			names += " " + f.Name + " in " + f.Path
		}
	}
	return fmt.Errorf("%w:%s", errStillBad, names)
}

// span is a range of octets.
type span struct{ start, end int64 }

// archiveName is the name of the attachment in which a Repacker puts what it has taken out.
const archiveName = "quarantine.zip"

// ourArchives returns where in out, which edits made, the archives with what was taken out lie. They hold the threat on
// purpose, behind a password if one is configured. One that came with the message is none of ours: it lies in octets
// that were there before.
func ourArchives(out inspect.Body, edits *inspect.Edits) (ours []span) {
	var inserted []span
	shift := int64(0)
	for _, e := range edits.List {
		size := int64(0)
		if e.New != nil {
			size = e.New.Size()
		}
		inserted = append(inserted, span{e.Start + shift, e.Start + shift + size})
		shift += size - (e.End - e.Start)
	}
	for p := range mimetree.Parse(out, out.Size(), mimetree.Limits{}).All() {
		if p.Kind != mimetree.Leaf || p.Name != archiveName || p.Type != "application/zip" {
			continue
		}
		for _, in := range inserted {
			if in.start <= p.Start && p.End <= in.end {
				ours = append(ours, span{p.BodyStart, p.End})
			}
		}
	}
	return ours
}

// maskedBody shows line ends in place of some of its octets: to a base64 decoder those are nothing.
type maskedBody struct {
	inspect.Body
	hidden []span
}

// ReadAt implements io.ReaderAt.
func (b *maskedBody) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Body.ReadAt(p, off)
	for _, h := range b.hidden {
		for i := max(h.start, off); i < min(h.end, off+int64(n)); i++ {
			p[i-off] = '\n'
		}
	}
	return n, err
}
