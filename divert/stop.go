package divert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// acceptTime is how long Stop lets connections that were diverted a moment ago reach Accept; closeTime how long Close
// lets closed connections carry their last octets.
const (
	acceptTime = time.Second
	closeTime  = 3 * time.Second
	pollTime   = 10 * time.Millisecond
)

// Stop ends the divert deliberately: from now on new connections flow directly, also those of clients that were
// diverted before (docs/design/002-stop-without-stall.md). First the rules that divert go; then the listeners are
// closed, once they have accepted what the kernel has for them. Connections that live go on, and what they need in the
// kernel is removed with the last of them, or by Close, which should follow once they are drained.
func (d *Divert) Stop(ctx context.Context) error {
	over, err := d.stopLocking(ctx)
	if over {
		d.endWatch()
		err = errors.Join(err, d.unlock())
	}
	return err
}

// stopLocking does the work of Stop, and tells whether nothing of ours is left in the kernel.
func (d *Divert) stopLocking(ctx context.Context) (over bool, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	d.stopped = true
	if d.now == nil {
		return true, errors.Join(d.closeListeners(), d.closeQueue())
	}
	var errs []error
	if !d.now.draining {
		w := *d.now
		w.draining = true
		for i := range w.former {
			w.former[i].ended = true
		}
		d.keepCounters()
		if err := d.kernel.apply(w.plan(), false, nil); err != nil {
			// What cannot be changed is removed: directly is what Stop promises.
			errs = append(errs, err, d.finish())
			errs = append(errs, d.closeListeners(), d.closeQueue())
			return d.now == nil, errors.Join(errs...)
		}
		d.now = &w
	}
	errs = append(errs, d.awaitAccepts(ctx), d.closeListeners(), d.closeQueue(), d.drainLocked())
	return d.now == nil, errors.Join(errs...)
}

func (d *Divert) closeQueue() error {
	if d.queue == nil {
		return nil
	}
	err := d.queue.close()
	d.queue = nil
	return err
}

// endWatch ends the watcher and waits for it.
func (d *Divert) endWatch() {
	d.op.Lock()
	stop, ended := d.stop, d.ended
	d.stop = nil
	d.op.Unlock()
	if stop != nil {
		stop()
		<-ended
	}
}

// awaitAccepts waits until the kernel has no connection for us any more that we have not accepted.
func (d *Divert) awaitAccepts(ctx context.Context) error {
	deadline := time.Now().Add(acceptTime)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		list, err := marked(stListen|stSynRecv|stNewSynRecv, d.marks.client)
		if err != nil {
			return err
		}
		waiting := 0
		for _, s := range list {
			if s.state != stListen || s.queued > 0 {
				waiting++
			}
		}
		if waiting == 0 {
			return nil
		}
		time.Sleep(pollTime)
	}
	return nil
}

// drainStep is what the watcher does for a stopping divert from time to time. It tells whether that is over.
func (d *Divert) drainStep() (over bool) {
	d.op.Lock()
	defer d.op.Unlock()
	if d.now == nil || !d.now.draining {
		return d.now == nil && d.stopped
	}
	if err := d.drainLocked(); err != nil {
		d.config.Log.Warn("stopping divert", "err", err)
	}
	return d.now == nil
}

// drainLocked clears away what closed connections have left, and everything once no connection lives.
func (d *Divert) drainLocked() error {
	// A socket in TIME_WAIT stands in the way of direct connections at once: see sweepSockets.
	_, err := sweepSockets(stTimeWait, d.marks.client, d.marks.server)
	live, e := marked(stLive, d.marks.client, d.marks.server)
	if err = errors.Join(err, e); e != nil || len(live) > 0 {
		return err
	}
	return errors.Join(err, d.finish())
}

// finish removes all that we have in the kernel.
func (d *Divert) finish() error {
	err := d.kernel.remove()
	_, e := unroute()
	_, e2 := sweepSockets(stLive|stLingering, d.marks.client, d.marks.server)
	if err = errors.Join(err, e, e2); err == nil {
		d.now = nil
	}
	return err
}

func (d *Divert) unlock() error {
	if err := d.lock.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Close removes everything, whatever still lives, and ends the watcher. It stops the divert if Stop was not called.
func (d *Divert) Close(ctx context.Context) error {
	errs := []error{d.Stop(ctx)}
	deadline := time.Now().Add(closeTime)
	for time.Now().Before(deadline) && ctx.Err() == nil && d.closing() {
		time.Sleep(pollTime)
	}
	d.op.Lock()
	if d.now != nil {
		errs = append(errs, d.finish())
	}
	d.op.Unlock()
	d.endWatch()
	return errors.Join(append(errs, d.unlock())...)
}

// closing says whether connections that the gateway has closed still carry octets.
func (d *Divert) closing() bool {
	d.op.Lock()
	defer d.op.Unlock()
	if d.now == nil {
		return false
	}
	list, err := marked(stFinWait1|stLastAck|stClosing, d.marks.client, d.marks.server)
	return err == nil && len(list) > 0
}

// Off removes every trace of a divert: of one that died, above all. It needs neither configuration nor gateway and may
// be repeated. While a gateway runs it reports so, since that gateway will put its rules back.
func Off(ctx context.Context, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	running := false
	if l, err := net.Listen("unix", lockName); errors.Is(err, unix.EADDRINUSE) {
		running = true
	} else if err == nil {
		defer func() { _ = l.Close() }()
	}
	var k ruleset
	errs := []error{k.remove()}
	found, err := unroute()
	errs = append(errs, err)
	if running {
		return errors.Join(append(errs, errors.New("a gateway is running here and puts its rules back: stop it to switch the divert off"))...)
	}
	if len(found) > 0 {
		n, err := sweepSockets(stLive|stLingering, found...)
		errs = append(errs, err)
		log.Info("divert is off", "policy rules removed", len(found), "sockets removed", n)
	}
	return errors.Join(errs...)
}

// Show prints the plan that the settings lead to, as a file for nft(8), without touching anything.
func Show(s Settings) (string, error) {
	if err := s.Check(); err != nil {
		return "", err
	}
	const note = "# The ports of tproxy are stand-ins: the gateway's listeners get free ones when it starts.\n"
	w := &wanted{settings: s, marks: s.marks(), families: []int{4, 6}, listeners: standIns(),
		asks: len(s.ExcludedProc) > 0}
	var b strings.Builder
	b.WriteString(note)
	if s.closed() {
		b.WriteString("# FailMode = Closed: rules commented \"closed\" refuse connections when nobody listens.\n")
	}
	_, err := fmt.Fprint(&b, w.plan())
	return b.String(), err
}
