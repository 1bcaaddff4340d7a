"""What protoc makes of the .proto files here (`make proto`)."""
