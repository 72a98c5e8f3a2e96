"""Files that others read: replaced whole, and in the forms that flannel and Docker know."""
