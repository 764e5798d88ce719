// Package admin is the protocol between a crid that runs and the commands of the same program: a gRPC service beside the
// CRI, on the same socket. It holds generated code alone; who answers is server, and who asks cmd/crid.
package admin

// It takes protoc (Debian: protobuf-compiler), protoc-gen-go v1.36.12 of google.golang.org/protobuf and protoc-gen-go-grpc v1.6.2.
//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative admin.proto
