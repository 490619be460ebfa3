package tlsunwrap

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// RootInfo describes the root certificates in use.
type RootInfo struct {
	Files   []string  // where they were read
	Dated   time.Time // when the newest of the files was last changed
	Count   int
	Dropped []string // names of certificates that were in the files but are never trusted
}

// Roots describes the root certificates in use. It is zero if Config.Roots was given.
func (u *Unwrapper) Roots() RootInfo { return u.rules.Load().rootInfo }

// rootFiles lists the files in which distributions keep their bundle; the first that exists counts. crypto/x509 knows
// them too, but reads them once for the life of the process and does not let a certificate be taken out again.
func rootFiles() []string {
	if f := os.Getenv("SSL_CERT_FILE"); f != "" {
		return []string{f}
	}
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Alpine
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
		"/etc/pki/tls/certs/ca-bundle.crt",                  // older Fedora, RHEL
		"/etc/ssl/ca-bundle.pem",                            // SUSE
		"/etc/ssl/cert.pem",                                 // Alpine
	}
}

// readRoots makes the pool of the system's roots and those in extra, without our own authorities (a server that shows
// a leaf of ours holds a stolen key) and without those that no store should have had.
func readRoots(extra []string, own []*x509.Certificate) (*x509.CertPool, RootInfo, error) {
	var info RootInfo
	pool := x509.NewCertPool()
	seen := map[string]bool{}
	add := func(path string) error {
		cs, err := readCertificates(path)
		if err != nil {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		info.Files = append(info.Files, path)
		if st.ModTime().After(info.Dated) {
			info.Dated = st.ModTime()
		}
		for _, c := range cs {
			if seen[string(c.Raw)] {
				continue
			}
			seen[string(c.Raw)] = true
			if ours(c, own) || infamous(c) {
				info.Dropped = append(info.Dropped, c.Subject.String())
				continue
			}
			pool.AddCert(c)
			info.Count++
		}
		return nil
	}
	for _, path := range systemRoots() {
		if err := add(path); err != nil {
			return nil, info, fmt.Errorf("read system roots: %w", err)
		}
	}
	for _, path := range extra {
		if err := add(path); err != nil {
			return nil, info, fmt.Errorf("TlsTrustedCa: %w", err)
		}
	}
	return pool, info, nil
}

// systemRoots returns the files that hold the system's roots: a bundle, or the files of SSL_CERT_DIR.
func systemRoots() []string {
	if dir := os.Getenv("SSL_CERT_DIR"); dir != "" && os.Getenv("SSL_CERT_FILE") == "" {
		var files []string
		for d := range strings.SplitSeq(dir, ":") {
			list, err := os.ReadDir(d)
			if err != nil {
				continue // as OpenSSL does with a directory that is not there
			}
			for _, f := range list {
				if st, err := os.Stat(filepath.Join(d, f.Name())); err == nil && st.Mode().IsRegular() {
					files = append(files, filepath.Join(d, f.Name()))
				}
			}
		}
		return files
	}
	for _, f := range rootFiles() {
		if _, err := os.Stat(f); err == nil {
			return []string{f}
		}
	}
	return nil
}

// readCertificates reads the certificates of a PEM file. Those that cannot be parsed are left out: distributions ship
// some that Go does not take.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var cs []*x509.Certificate
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return cs, nil
		}
		if b.Type != "CERTIFICATE" && b.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			cs = append(cs, c)
		}
	}
}

// ours reports whether c is one of our authorities, or claims to be issued by one.
func ours(c *x509.Certificate, own []*x509.Certificate) bool {
	for _, o := range own {
		if bytes.Equal(c.RawSubjectPublicKeyInfo, o.RawSubjectPublicKeyInfo) || bytes.Equal(c.RawIssuer, o.RawSubject) ||
			len(c.AuthorityKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, o.SubjectKeyId) {
			return true
		}
	}
	return false
}

// infamous reports whether c belongs to an authority that must not be in any store: its private key is public, or it
// was found to sign for whoever asked. They are told by name, since each had several certificates.
func infamous(c *x509.Certificate) bool {
	names := append(append([]string{c.Subject.CommonName}, c.Subject.Organization...), c.Subject.OrganizationalUnit...)
	for _, n := range names {
		n = strings.ToLower(n)
		for _, bad := range [...]string{
			"superfish",       // Lenovo, 2015: private key in every copy
			"edellroot",       // Dell, 2015: likewise
			"dsdtestprovider", // Dell, 2015: likewise
			"privdog",         // 2015: verified nothing
			"komodia",         // 2015: the engine behind Superfish and others
			"diginotar",       // 2011: broken into
			"cnnic root",      // 2015: MCS Holdings
			"china internet network information center", // likewise
			"wosign",                    // 2016: back-dating
			"startcom",                  // 2016: likewise
			"trustcor",                  // 2022: ties to spyware
			"qaznet",                    // 2015-2019: state interception in Kazakhstan
			"qaznet trust network",      // likewise
			"blue coat public services", // 2015: intermediate for interception
			"trustwave organization issuing ca, level 2", // 2012: sold for interception
			"*.ego.gov.tr", // 2013: TurkTrust's mis-issued authority
			"sennheiser",   // 2018: private key in HeadSetup
		} {
			if strings.Contains(n, bad) {
				return true
			}
		}
	}
	return false
}
