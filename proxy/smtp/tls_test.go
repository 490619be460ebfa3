package smtp

import (
	"crypto/tls"
	"crypto/x509"

	"mailweir/certs"
	"mailweir/proxy/proxytest"
	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

// dialogueTLS sets a dialogue's TLS up; see harness_test.go.
func dialogueTLS(e *proxytest.Env, cfg *Config, how string) {
	root := tlstest.NewCA(e.T, "test root")
	leaf := root.Leaf(e.T, []string{"mx.example"})
	e.ServerTLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
	if how == "raw" {
		e.ClientTLS = &tls.Config{ServerName: "mx.example", RootCAs: tlstest.Pool(root)}
		return
	}
	a, err := certs.Open(e.T.TempDir(), "gw.test")
	if err != nil {
		e.T.Fatal(err)
	}
	conf := tlsunwrap.Config{Minter: a, OwnCAs: a.Certificates(), Roots: tlstest.Pool(root), Log: e.Log, Events: e.Events}
	conf.UnwrapSsl = true
	if how == "strict" || how == "mirror" || how == "auto" {
		conf.Roots = x509.NewCertPool()
	}
	if how == "strict" {
		conf.TlsVerify = "Strict"
	}
	if how == "mirror" {
		conf.TlsVerify = "Opportunistic"
	}
	u, err := tlsunwrap.New(conf)
	if err != nil {
		e.T.Fatal(err)
	}
	cfg.TLS = u
	roots := x509.NewCertPool()
	if how == "distrusted" {
		e.ClientTLS = &tls.Config{ServerName: "mx.example", RootCAs: roots}
		return
	}
	roots.AppendCertsFromPEM(a.PEM())
	e.ClientTLS = &tls.Config{ServerName: "mx.example", RootCAs: roots, InsecureSkipVerify: how == "mirror"}
}
