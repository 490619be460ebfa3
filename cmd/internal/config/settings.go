package config

import (
	"path/filepath"
	"time"

	"mailweir/divert"
	"mailweir/inspect/engine/clamd"
	"mailweir/inspect/maild"
	"mailweir/inspect/quarantine"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/smtp"
	"mailweir/tlsunwrap"
)

// Settings is everything that an administrator can set, a field a section. Structs inside of a section are the
// Settings of the package that they come from; their parameters stand in the section directly.
type Settings struct {
	Root           Root
	LinuxFirewall  LinuxFirewall
	Smtp           smtp.Settings
	MailD          repack.Settings
	MailQuarantine quarantine.Settings `restart:"yes"`
	ClamD          clamd.Settings      `when:"ClamdSocket"`
}

// Root is the section [Root]: paths and logs.
type Root struct {
	StateDir        string `key:"StateDir" type:"directory" default:"/var/lib/mailweir" restart:"yes" doc:"Where the authority's keys and certificates, the quarantine and the event log are kept."`
	SpoolDir        string `key:"SpoolDir" type:"directory" default:"" restart:"yes" doc:"Where messages that are being inspected lie while they are too long for memory. Nothing in it outlives the process. Empty means the directory spool under StateDir."`
	ControlSocket   string `key:"ControlSocket" type:"path" default:"/run/mailweir/control.sock" restart:"yes" doc:"The UNIX socket on which the running gateway answers the other commands."`
	VirusBaseDir    string `key:"VirusBaseDir" type:"directory" default:"" doc:"Signature files (.hdb, .hsb, .ndb) of the built-in engine. Empty means the directory signatures under StateDir."`
	DefaultLogLevel string `key:"DefaultLogLevel" enum:"Debug|Info|Notice|Warning|Error" default:"Notice" doc:"How much is logged. Notice has one line for everything an administrator may have to act on, Info one line for every connection and message, Debug what a developer wants."`
	Log             Log    `key:"Log" type:"Auto | Stderr | Stderr:ShowTimestamp | Syslog | Syslog:<facility> | path" default:"Auto" doc:"Where the log goes. Auto is the standard error output, with the priority prefixes of the journal when systemd reads it and with times otherwise."`
	EventLog        string `key:"EventLog" type:"path" default:"" restart:"yes" doc:"The event log, one JSON object a line. Empty means events.jsonl under StateDir."`
	EventLogSize    int64  `key:"EventLogSize" type:"size" default:"64mb" restart:"yes" min:"64kb" max:"64gb" doc:"The event log is renamed to .1 when it reaches this size, .1 to .2 and so on."`
	EventLogFiles   int    `key:"EventLogFiles" default:"5" restart:"yes" min:"1" max:"100" doc:"How many full event logs are kept beside the current one."`

	DrainTimeout time.Duration `key:"DrainTimeout" default:"1m" min:"1s" max:"1h" doc:"When the gateway stops: how long connections may take to finish what they are at. Rules are removed before, so new connections go directly to their servers."`

	Spool spool.Settings `restart:"yes"`
}

// Signatures returns the directory of signature files.
func (r *Root) Signatures() string {
	if r.VirusBaseDir != "" {
		return r.VirusBaseDir
	}
	return filepath.Join(r.StateDir, "signatures")
}

// Spooling returns the directory of messages that are being inspected.
func (r *Root) Spooling() string {
	if r.SpoolDir != "" {
		return r.SpoolDir
	}
	return filepath.Join(r.StateDir, "spool")
}

// Events returns the path of the event log.
func (r *Root) Events() string {
	if r.EventLog != "" {
		return r.EventLog
	}
	return filepath.Join(r.StateDir, "events.jsonl")
}

// LinuxFirewall is the section [LinuxFirewall]: which connections are inspected, and how.
type LinuxFirewall struct {
	InspectSmtp bool `key:"InspectSmtp" default:"On" doc:"Inspect SMTP. Off leaves its ports undiverted."`
	InspectPop3 bool `key:"InspectPop3" default:"On" doc:"Inspect POP3. This version has no POP3 door yet: ports 110 and 995 are not diverted, and the log says so."`
	InspectImap bool `key:"InspectImap" default:"On" doc:"Inspect IMAP. This version has no IMAP door yet: ports 143 and 993 are not diverted, and the log says so."`

	Divert divert.Settings
	Tls    tlsunwrap.Settings
	Scan   maild.Settings
	Proxy  proxy.Settings `restart:"yes"`
}
