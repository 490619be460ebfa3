// Package maild is the scanner: it takes a message apart, has every engine look at every object in it, and turns what
// they say into one verdict.
//
// Scan looks at the message as a whole, at each of its other readings, and at every part in every way that some mail
// program would read it: decoded, out of archives, out of attached messages, out of uuencoded text. Findings are looked
// up in the table of policy.go; the strongest action that one of them asks for is done. Modify and Discard happen only
// after the original is durably kept; what a repack gives is looked at again before it goes out. Whatever was not
// looked at (a limit, a password, a deadline, an engine that fails) is a finding of its own and never clean.
//
// A message is judged within ScanTimeout and a little; memory does not grow with its size, since what is taken out of
// it lies in the spool, one object at each level of nesting. Engines run side by side on one object, and Scan waits for
// all of them.
package maild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"mailweir/inspect"
	"mailweir/inspect/spool"
)

// Keeper keeps messages durably: *quarantine.Store.
type Keeper interface {
	Keep(ctx context.Context, m *inspect.Message, v *inspect.Verdict) (id string, err error)
}

// Config is what the gateway wires in.
type Config struct {
	Settings
	Engines  []inspect.Engine
	Keeper   Keeper      // nil: what has to be kept cannot be, and is deferred
	Repacker Repacker    // nil: what should be repacked is rejected
	Spool    *spool.Pool // required
	Log      *slog.Logger
}

// MailD is an inspect.Scanner.
type MailD struct {
	cfg    Config
	policy policy
	pools  pools
}

// summer is an engine that says whether it uses Object.Sum, which costs a pass over every object. Of the others it is
// taken for granted.
type summer interface{ UsesSum() bool }

// usesSums says whether one of the engines uses Object.Sum.
func usesSums(engines []inspect.Engine) bool {
	for _, e := range engines {
		if s, ok := e.(summer); !ok || s.UsesSum() {
			return true
		}
	}
	return false
}

// New makes a scanner.
func New(cfg Config) (*MailD, error) {
	if cfg.Spool == nil {
		return nil, errors.New("make scanner: no spool")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Settings = cfg.Settings.withDefaults()
	p, err := newPolicy(cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("make scanner: %w", err)
	}
	d := &MailD{cfg: cfg, policy: p}
	d.pools.init()
	return d, nil
}

// Judge is Scan without its side effects: nothing is kept and nothing repacked. The action is what Scan would do.
func (d *MailD) Judge(ctx context.Context, m *inspect.Message) inspect.Verdict {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ScanTimeout)
	defer cancel()
	j := d.judge(ctx, m)
	return j.verdict()
}

// Scan implements inspect.Scanner.
func (d *MailD) Scan(ctx context.Context, m *inspect.Message) inspect.Verdict {
	scan, cancel := context.WithTimeout(ctx, d.cfg.ScanTimeout)
	defer cancel()
	j := d.judge(scan, m)
	v := j.verdict()
	switch {
	case v.Action == inspect.Reject && d.cfg.Keeper != nil && (d.cfg.QuarantineRejected || m.Door == inspect.DoorPOP3):
		// A reader of mail gets a notice in place of what is refused, and deletes the original by that.
	case v.Action == inspect.Modify, v.Action == inspect.Discard:
	default:
		return v
	}
	// Not under the scan's deadline: what was decided in time is also carried out. The door's own context still counts.
	if err := d.keep(ctx, m, &v); err != nil {
		return d.deferred(m, v, "quarantine", err)
	}
	if v.Action == inspect.Modify {
		d.repack(ctx, scan, j, &v)
	}
	return v
}

// keep puts the original into the quarantine.
func (d *MailD) keep(ctx context.Context, m *inspect.Message, v *inspect.Verdict) error {
	if d.cfg.Keeper == nil {
		return errors.New("there is no quarantine")
	}
	id, err := d.cfg.Keeper.Keep(ctx, m, v)
	v.Quarantine = id
	return err
}

// deferred turns v into a temporary refusal because of a failure of our own.
func (d *MailD) deferred(m *inspect.Message, v inspect.Verdict, reason string, err error) inspect.Verdict {
	v.Action, v.Edits, v.Reason = inspect.Defer, nil, reason
	v.Reply = reply(tempFail, reason, m.ID)
	v.Err = errors.Join(v.Err, err)
	return v
}

// verdict sums up what was found.
func (j *judge) verdict() inspect.Verdict {
	v := inspect.Verdict{Findings: j.findings, Reason: j.reason, Err: errors.Join(j.errs...)}
	v.Reply = reply(j.strongest, j.reason, j.m.ID)
	switch j.strongest {
	case pass:
		v.Action = inspect.Pass
	case doRepack:
		v.Action = inspect.Modify
	case discard:
		v.Action = inspect.Discard
	case reject:
		v.Action = inspect.Reject
	}
	if v.Reason == "" {
		v.Reason = "clean"
	}
	return v
}
