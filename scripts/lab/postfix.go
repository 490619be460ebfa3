package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Postfix is a Postfix of its own: configuration, queue, log and store below one directory, in one namespace.
type Postfix struct {
	Dir  string
	Sink *Sink // what it delivered, octet for octet behind the header fields that it prepends
	cmd  *exec.Cmd
}

// PostfixConfig says what kind of Postfix is wanted.
type PostfixConfig struct {
	Name   string
	NS     *Namespace
	PKI    *PKI   // offers STARTTLS on 25 and 587 and speaks TLS on 465
	Listen string // instead of the mail ports: one address, for a client that is fed by SMTP
	Main   string // further lines of main.cf
	Relay  string // [address]:port: hand everything there instead of delivering it
}

// StartPostfix starts it and waits until it listens.
func (l *Lab) StartPostfix(ctx context.Context, c PostfixConfig) (*Postfix, error) {
	p := &Postfix{Dir: l.Path("postfix-" + c.Name)}
	owner, err := user.Lookup("postfix")
	if err != nil {
		return nil, fmt.Errorf("find Postfix's user: %w", err)
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return nil, fmt.Errorf("read Postfix's user: %w", err)
	}
	for _, d := range []string{"etc", "queue", "data", "store"} {
		if err := os.MkdirAll(filepath.Join(p.Dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	for _, d := range []string{"data", "store"} {
		if err := os.Chown(filepath.Join(p.Dir, d), uid, -1); err != nil {
			return nil, fmt.Errorf("give directory: %w", err)
		}
	}
	if err := p.deliver(c, uid); err != nil {
		return nil, err
	}
	l.OnClose(p.Sink.Close)
	if err := os.WriteFile(filepath.Join(p.Dir, "etc/main.cf"), []byte(p.main(c)), 0o644); err != nil {
		return nil, fmt.Errorf("write main.cf: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, "etc/master.cf"), []byte(p.master(c)), 0o644); err != nil {
		return nil, fmt.Errorf("write master.cf: %w", err)
	}
	p.cmd = c.NS.Command(context.Background(), "/usr/sbin/postfix", "-c", filepath.Join(p.Dir, "etc"), "start-fg")
	out, err := os.Create(filepath.Join(p.Dir, "out"))
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := c.NS.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start Postfix: %w", err)
	}
	l.OnClose(p.Kill)
	probe := []string{"127.0.0.1:25", "127.0.0.1:587", "127.0.0.1:465", "[::1]:25"}
	if c.Listen != "" {
		probe = []string{c.Listen}
	}
	for _, a := range probe {
		if err := c.NS.Reachable(ctx, a); err != nil {
			return nil, fmt.Errorf("wait for Postfix: %w\n%s", err, p.Log())
		}
	}
	return p, nil
}

// deliver starts the sink behind Postfix: LMTP over a socket in the file system, so that it is nobody's network.
func (p *Postfix) deliver(c PostfixConfig, uid int) error {
	path := filepath.Join(p.Dir, "store/lmtp")
	listen, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for deliveries: %w", err)
	}
	if err := os.Chown(path, uid, -1); err != nil {
		listen.Close()
		return fmt.Errorf("give socket: %w", err)
	}
	p.Sink = &Sink{LMTP: true, Keywords: []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}}
	p.Sink.Serve(listen)
	return nil
}

func (p *Postfix) main(c PostfixConfig) string {
	lines := []string{
		"compatibility_level = 3.6", "queue_directory = " + p.Dir + "/queue", "data_directory = " + p.Dir + "/data",
		"maillog_file = " + p.Dir + "/store/mail.log", "maillog_file_prefixes = " + p.Dir,
		"myhostname = " + c.Name + ".lab.example", "mydestination =", "mynetworks = 0.0.0.0/0 [::]/0",
		"smtpd_relay_restrictions = permit_mynetworks, reject", "inet_interfaces = all", "inet_protocols = all",
		"alias_maps =", "alias_database =", "local_recipient_maps =", "smtp_host_lookup = native", "disable_dns_lookups = yes",
		"smtpd_peername_lookup = no", "message_size_limit = 0", "mailbox_size_limit = 0", "biff = no",
		// Nothing is to be changed on its way: no header added for anybody, no line broken, no 8-bit encoded.
		"local_header_rewrite_clients =", "lmtp_line_length_limit = 0", "smtp_line_length_limit = 0",
		"disable_mime_output_conversion = yes", "smtputf8_enable = yes",
		// Measuring clients open many connections at once.
		"smtpd_client_connection_count_limit = 0", "smtpd_client_connection_rate_limit = 0", "anvil_rate_time_unit = 1s",
		"minimal_backoff_time = 1s", "maximal_backoff_time = 2s", "queue_run_delay = 1s", "default_process_limit = 30",
		"smtp_destination_concurrency_limit = 10", "import_environment = MAIL_CONFIG MAIL_DEBUG TZ LANG",
	}
	transport := "lmtp:unix:" + p.Dir + "/store/lmtp"
	if c.Relay != "" {
		transport = "smtp:" + c.Relay
	}
	lines = append(lines, "transport_maps = static:"+transport)
	if c.PKI != nil {
		lines = append(lines, "smtpd_tls_cert_file = "+c.PKI.CertFile, "smtpd_tls_key_file = "+c.PKI.KeyFile,
			"smtpd_tls_security_level = may", "smtpd_tls_loglevel = 1", "smtpd_tls_received_header = yes")
	}
	return strings.Join(lines, "\n") + "\n" + c.Main + "\n"
}

func (p *Postfix) master(c PostfixConfig) string {
	ports := "25 inet n - n - - smtpd\n587 inet n - n - - smtpd\n465 inet n - n - - smtpd\n  -o smtpd_tls_wrappermode=yes\n"
	if c.Listen != "" {
		ports = c.Listen + " inet n - n - - smtpd\n"
	}
	return ports + `pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`
}

// Log returns what Postfix logged.
func (p *Postfix) Log() string {
	log, _ := os.ReadFile(filepath.Join(p.Dir, "store/mail.log"))
	out, _ := os.ReadFile(filepath.Join(p.Dir, "out"))
	return string(log) + string(out)
}

// Flush has Postfix try its deferred mail at once. It does so in a second or two by itself, but a queue run that meets a
// message just being deferred may leave it for much longer.
func (p *Postfix) Flush(ns *Namespace) error {
	if out, err := ns.Command(context.Background(), "/usr/sbin/postkick", "-c", filepath.Join(p.Dir, "etc"), "public", "qmgr", "IDAF").CombinedOutput(); err != nil {
		return fmt.Errorf("flush Postfix's queue: %w: %s", err, out)
	}
	return nil
}

// Kill ends Postfix's master; its children follow.
func (p *Postfix) Kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		// start-fg runs master as a child of a shell script or in its place, depending on the version.
		if pid, err := os.ReadFile(filepath.Join(p.Dir, "queue/pid/master.pid")); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil && n > 1 {
				killWait(n)
			}
		}
		p.cmd = nil
	}
}

// Reachable waits until something listens at a TCP address of the namespace.
func (n *Namespace) Reachable(ctx context.Context, addr string) error {
	for {
		c, err := n.Dial(addr)
		if err == nil {
			c.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
