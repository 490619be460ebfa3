// Package quarantine keeps messages that were not delivered as they came, durably.
//
// When Keep has returned, the message is on the disk: its octets are written and synced, its name is in the synced
// directory, and its row is committed. Only then may a sender be told that its message was taken. The row is written
// last, so that nothing half is ever listed; octets without a row, left by a process that died in between, are removed
// by the next Open. Several processes (the daemon and the command line) may use one directory at once.
//
// An item's id is made from the message's own id, its envelope and its octets: keeping the same message again gives the
// same id and no second item. The package knows nothing of viruses and does not age items by itself: Purge does, when
// it is called.
package quarantine

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the database driver "sqlite"

	"mailweir/inspect"
)

// Settings are what an administrator writes.
type Settings struct {
	Retention time.Duration `key:"Retention" default:"30d" min:"1h" none:"yes" doc:"How long an item is kept in the quarantine. None keeps items until they are deleted."`
}

// DefaultRetention is the default of Settings.Retention. A zero Retention means None here: config stores it so.
const DefaultRetention = 30 * 24 * time.Hour

// Config is what the gateway wires in.
type Config struct {
	Settings
	Dir string           // of the quarantine alone; made when missing
	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: time.Now
}

// Store is a quarantine.
type Store struct {
	cfg Config
	db  *sql.DB
}

// Item is one message in the quarantine.
type Item struct {
	ID       string            `json:"id"`
	Time     time.Time         `json:"time"`
	Conn     string            `json:"conn,omitempty"`
	Msg      string            `json:"msg"`
	Door     inspect.Door      `json:"door"`
	Client   string            `json:"client,omitempty"`
	Server   string            `json:"server,omitempty"`
	From     string            `json:"from"`
	To       []string          `json:"to"`
	Subject  string            `json:"subject,omitempty"`
	Size     int64             `json:"size"`
	SHA256   string            `json:"sha256"`
	Action   string            `json:"action"`
	Reason   string            `json:"reason,omitempty"`
	Findings []inspect.Finding `json:"findings,omitempty"`
}

// Filter selects items. Zero fields select everything.
type Filter struct {
	Since, Until time.Time // [Since, Until)
	Text         string    // occurs in id, msg, addresses, subject, reason or findings
	Limit        int       // the newest so many
}

// ErrNotFound is returned for an id that is not in the quarantine.
var ErrNotFound = errors.New("not in the quarantine")

const schema = `CREATE TABLE IF NOT EXISTS items (
	id TEXT PRIMARY KEY, time INTEGER NOT NULL, conn TEXT NOT NULL, msg TEXT NOT NULL, door TEXT NOT NULL,
	client TEXT NOT NULL, server TEXT NOT NULL, sender TEXT NOT NULL, recipients TEXT NOT NULL, subject TEXT NOT NULL,
	size INTEGER NOT NULL, sha256 TEXT NOT NULL, action TEXT NOT NULL, reason TEXT NOT NULL, findings TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_time ON items (time);
PRAGMA user_version = 1;`

// Open opens the quarantine in cfg.Dir, and makes it at first use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{cfg: cfg}
	if err := os.MkdirAll(s.messages(), 0o700); err != nil {
		return nil, fmt.Errorf("open quarantine: %w", err)
	}
	if err := s.openDatabase(ctx); err != nil {
		return nil, fmt.Errorf("open quarantine index: %w", err)
	}
	for _, dir := range []string{filepath.Dir(cfg.Dir), cfg.Dir} { // that these names are there must last, too
		if err := syncDir(dir); err != nil {
			s.db.Close()
			return nil, fmt.Errorf("open quarantine: %w", err)
		}
	}
	if err := s.sweep(ctx); err != nil {
		s.db.Close()
		return nil, fmt.Errorf("sweep quarantine: %w", err)
	}
	return s, nil
}

func (s *Store) openDatabase(ctx context.Context) error {
	// Changing an empty database to WAL does not wait for its lock, whatever busy_timeout says: one process at a time.
	unlock, err := s.lock("open.lock", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	// busy_timeout comes first: switching to WAL takes a lock as well. Transactions take the write lock when they begin
	// (_txlock), for one that turns from reading to writing fails at once when another has written meanwhile.
	// synchronous=FULL: a commit in WAL mode is otherwise not on the disk when it returns.
	q := "_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"
	dsn := (&url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(s.cfg.Dir, "index.db"), RawQuery: q}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(4)
	var version int
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	switch {
	case err != nil:
	case version == 0:
		// In a transaction of its own: the daemon and the command line may both be the first.
		_, err = db.ExecContext(ctx, "BEGIN IMMEDIATE;"+schema+"COMMIT;")
	case version > 1:
		err = fmt.Errorf("it was made by a newer version (%d)", version)
	}
	if err != nil {
		db.Close()
		return err
	}
	s.db = db
	return os.Chmod(filepath.Join(s.cfg.Dir, "index.db"), 0o600)
}

// Close releases the database.
func (s *Store) Close() error { return s.db.Close() }

func (s *Store) messages() string      { return filepath.Join(s.cfg.Dir, "messages") }
func (s *Store) path(id string) string { return filepath.Join(s.messages(), id+".eml") }

const temporary = ".new-" // begins the names of files that are being written

// Keep stores m and what was decided about it, and returns the item's id. When it returns without an error the item
// survives a crash of the machine; when it returns with one there is no item.
func (s *Store) Keep(ctx context.Context, m *inspect.Message, v *inspect.Verdict) (string, error) {
	unlock, err := s.lock("lock", syscall.LOCK_SH)
	if err != nil {
		return "", fmt.Errorf("quarantine message: %w", err)
	}
	defer unlock()
	id, err := s.keep(ctx, m, v)
	if err != nil {
		return "", fmt.Errorf("quarantine message: %w", err)
	}
	return id, nil
}

func (s *Store) keep(ctx context.Context, m *inspect.Message, v *inspect.Verdict) (string, error) {
	f, err := os.CreateTemp(s.messages(), temporary)
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // fails once it has its real name
	defer f.Close()
	sum, err := copyBody(ctx, f, m.Body)
	if err != nil {
		return "", err
	}
	it := s.item(m, v, sum)
	if err := f.Sync(); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	// The same message again finds its own file, with the same octets: to replace it does no harm.
	if err := os.Rename(f.Name(), s.path(it.ID)); err != nil {
		return "", err
	}
	err = syncDir(s.messages())
	if err == nil {
		err = s.insert(ctx, it)
	}
	if err != nil {
		// An error of commit may leave it open whether the row is there; then the file stays too.
		if _, e := s.Show(context.WithoutCancel(ctx), it.ID); errors.Is(e, ErrNotFound) {
			os.Remove(s.path(it.ID))
		}
		return "", err
	}
	return it.ID, nil
}

func copyBody(ctx context.Context, w io.Writer, body inspect.Body) (sum []byte, err error) {
	h := sha256.New()
	buf := make([]byte, min(128<<10, max(body.Size(), 1)))
	r := inspect.Reader(body)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if _, e := w.Write(buf[:n]); e != nil {
			return nil, e
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if pos, _ := r.Seek(0, io.SeekCurrent); pos != body.Size() {
		return nil, io.ErrUnexpectedEOF
	}
	return h.Sum(nil), nil
}

func (s *Store) item(m *inspect.Message, v *inspect.Verdict, sum []byte) *Item {
	it := &Item{Time: s.cfg.Now().UTC(), Conn: m.Session.Conn, Msg: m.ID, Door: m.Door, Client: address(m.Session.Client),
		Server: address(m.Session.Server), From: m.Envelope.From, To: m.Envelope.To, Subject: subject(m.Body),
		Size: m.Body.Size(), SHA256: fmt.Sprintf("%x", sum), Action: v.Action.String(), Reason: v.Reason, Findings: v.Findings}
	h := sha256.New()
	for _, part := range append([]string{m.ID, string(m.Door), m.Envelope.From, it.SHA256}, m.Envelope.To...) {
		writePart(h, part)
	}
	it.ID = strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:15]))
	return it
}

// writePart adds s to h such that no two lists of parts look alike.
func writePart(h hash.Hash, s string) { fmt.Fprintf(h, "%d:%s", len(s), s) }

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (s *Store) insert(ctx context.Context, it *Item) error {
	to, err := json.Marshal(it.To)
	if err != nil {
		return err
	}
	findings, err := json.Marshal(it.Findings)
	if err != nil {
		return err
	}
	_, err = s.db.ExecContext(ctx, `INSERT INTO items VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING`,
		it.ID, it.Time.UnixMilli(), it.Conn, it.Msg, string(it.Door), it.Client, it.Server, it.From, string(to), it.Subject,
		it.Size, it.SHA256, it.Action, it.Reason, string(findings))
	return err
}

const columns = `id, time, conn, msg, door, client, server, sender, recipients, subject, size, sha256, action, reason, findings`

func scanItem(row interface{ Scan(...any) error }) (*Item, error) {
	var it Item
	var ms int64
	var to, findings string
	err := row.Scan(&it.ID, &ms, &it.Conn, &it.Msg, &it.Door, &it.Client, &it.Server, &it.From, &to, &it.Subject, &it.Size,
		&it.SHA256, &it.Action, &it.Reason, &findings)
	if err == nil {
		err = json.Unmarshal([]byte(to), &it.To)
	}
	if err == nil {
		err = json.Unmarshal([]byte(findings), &it.Findings)
	}
	it.Time = time.UnixMilli(ms).UTC()
	return &it, err
}

// List returns the items that match f, the newest first.
func (s *Store) List(ctx context.Context, f Filter) ([]Item, error) {
	where, args := []string{"1"}, []any{}
	if !f.Since.IsZero() {
		where, args = append(where, "time >= ?"), append(args, f.Since.UnixMilli())
	}
	if !f.Until.IsZero() {
		where, args = append(where, "time < ?"), append(args, f.Until.UnixMilli())
	}
	if f.Text != "" {
		pattern := "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(f.Text) + "%"
		where = append(where, `(id || ' ' || msg || ' ' || sender || ' ' || recipients || ' ' || subject || ' ' || reason || ' ' || findings) LIKE ? ESCAPE '\'`)
		args = append(args, pattern)
	}
	q := "SELECT " + columns + " FROM items WHERE " + strings.Join(where, " AND ") + " ORDER BY time DESC, id"
	if f.Limit > 0 {
		q, args = q+" LIMIT ?", append(args, f.Limit)
	}
	rows, err := s.db.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	defer rows.Close()
	var items []Item
	for rows.Next() {
		it, err := scanItem(rows)
		if err != nil {
			return nil, fmt.Errorf("list quarantine: %w", err)
		}
		items = append(items, *it)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	return items, nil
}

// Show returns one item.
func (s *Store) Show(ctx context.Context, id string) (*Item, error) {
	it, err := scanItem(s.db.QueryRowContext(ctx, "SELECT "+columns+" FROM items WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("item %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read item %q: %w", id, err)
	}
	return it, nil
}

// Export writes the very octets of an item to w.
func (s *Store) Export(ctx context.Context, id string, w io.Writer) error {
	body, _, err := s.OpenItem(ctx, id)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(w, body); err != nil {
		return fmt.Errorf("export item %q: %w", id, err)
	}
	return nil
}

// OpenItem returns one item and the file that holds its octets; the caller closes it.
func (s *Store) OpenItem(ctx context.Context, id string) (*os.File, *Item, error) {
	it, err := s.Show(ctx, id) // also makes sure that id is one of ours, not a path
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(s.path(it.ID))
	if err != nil {
		return nil, nil, fmt.Errorf("open item %q: %w", id, err)
	}
	return f, it, nil
}

// Delete removes one item.
func (s *Store) Delete(ctx context.Context, id string) error {
	// Not while the same message is being kept again: its new row must not be left without its file.
	unlock, err := s.lock("lock", syscall.LOCK_EX)
	if err != nil {
		return fmt.Errorf("delete item %q: %w", id, err)
	}
	defer unlock()
	r, err := s.db.ExecContext(ctx, "DELETE FROM items WHERE id = ?", id)
	if err != nil {
		return fmt.Errorf("delete item %q: %w", id, err)
	}
	if n, err := r.RowsAffected(); err == nil && n == 0 {
		return fmt.Errorf("item %q: %w", id, ErrNotFound)
	}
	// The row is gone, and with it the item: should the file stay, the next sweep takes it.
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete item %q: %w", id, err)
	}
	return nil
}

// Purge deletes what is older than Retention and returns how many items that were.
func (s *Store) Purge(ctx context.Context) (int, error) {
	if s.cfg.Retention <= 0 {
		return 0, nil
	}
	old, err := s.List(ctx, Filter{Until: s.cfg.Now().Add(-s.cfg.Retention)})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, it := range old {
		err := s.Delete(ctx, it.ID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return n, err
		}
		n++
	}
	if n > 0 {
		s.cfg.Log.Info("old items removed from the quarantine", "items", n)
	}
	return n, nil
}
