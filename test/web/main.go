// Command web is the workload of the demo and the tests: a static web server that can also be its own client,
// so that an image needs nothing else to show two containers talking, and can tell its health by gRPC. It knows
// nothing of containers.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	listen := flag.String("listen", ":80", "address to serve on")
	get := flag.String("get", "", "URL to fetch and print, instead of serving")
	healthOn := flag.String("health", "", "address to serve gRPC's health protocol on, beside the web; empty = none")
	flag.Parse()
	if *get != "" {
		if err := fetch(*get); err != nil {
			log.Fatal(err)
		}
		return
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		log.Printf("web: %s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "hello from %s\n", host)
	})
	if *healthOn != "" {
		go func() { log.Fatal(serveHealth(*healthOn)) }() // ends with the program
	}
	log.Printf("web: serving on %s", *listen)
	log.Fatal(http.ListenAndServe(*listen, nil))
}

// serveHealth answers SERVING to all who ask.
func serveHealth(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	return server.Serve(l)
}

func fetch(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return err
}
